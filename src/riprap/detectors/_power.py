"""Power of a probe set: what it can tell of the behavior, and how far it is from its floor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

CHANCE = 0.8  # with which a loss is called visible


@dataclass(frozen=True)
class Power:
    """What a probe set can tell, if its probes are a random sample of those that matter.

    Attributes:
        n_probes: number of probes.
        spare: number of probes that may stop passing before the behavior is broken.
        seen_below: largest true score under which the measured score is below the floor with
            probability 0.8; None: no score is, because the floor is too low for so few probes.
    """

    n_probes: int
    spare: int
    seen_below: float | None

    @classmethod
    def of(cls, margins: np.ndarray, floor: float) -> Power:
        """Return the power of a probe set with these margins, shape (n_probes,)."""
        n = len(margins)
        needed = math.ceil(floor * n - 1e-9)  # passing probes, so that the score is not under it
        return cls(n, int((margins > 0).sum()) - needed, _seen_below(n, needed))

    def __str__(self) -> str:
        """Return both in one sentence without its end."""
        probes = "1 probe" if self.n_probes == 1 else f"{self.n_probes} probes"
        if self.spare < 0:
            return f"{probes}, under the floor"
        spare = "the first that fails breaks it" if not self.spare else f"{self.spare} may fail"
        if self.seen_below is None:
            return f"{probes}, {spare}"
        return f"{probes}, {spare}; a true score below {self.seen_below:.2f} shows 4 times in 5"


def _seen_below(n: int, needed: int) -> float | None:
    """Return the score p at which at most `needed` − 1 of n probes pass with probability 0.8."""
    if needed < 1:
        return None
    # P(X < needed) for X ~ Binomial(n, p) is that of a Beta(needed, n − needed + 1) above p.
    return float(stats.beta.isf(CHANCE, needed, n - needed + 1))
