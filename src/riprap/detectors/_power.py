"""Power of a probe set: what it can tell of the behavior, and how far it is from its floor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from riprap.detectors._derived import threshold_rank

CHANCE = 0.8  # with which a loss is called visible


@dataclass(frozen=True)
class Power:
    """What a probe set can tell, if its probes are a random sample of those that matter.

    Attributes:
        n_probes: number of probes.
        spare: number of probes that may stop passing before the behavior is broken.
        seen_below: largest true score under which the measured score is below the floor with
            probability 0.8.
    """

    n_probes: int
    spare: int
    seen_below: float

    @classmethod
    def of(cls, margins: np.ndarray, floor: float) -> Power:
        """Return the power of a probe set with these margins, shape (n_probes,)."""
        n = len(margins)
        needed = n - threshold_rank(n, floor)  # passing probes, so that the score is not under it
        # P(X < needed) for X ~ Binomial(n, p) is that of a Beta(needed, n − needed + 1) above p.
        seen_below = float(stats.beta.isf(CHANCE, needed, n - needed + 1))
        return cls(n, int((margins > 0).sum()) - needed, seen_below)

    def __str__(self) -> str:
        """Return both in one sentence without its end."""
        probes = "1 probe" if self.n_probes == 1 else f"{self.n_probes} probes"
        if self.spare < 0:
            return f"{probes}, under the floor"
        spare = "the first that fails breaks it" if not self.spare else f"{self.spare} may fail"
        return f"{probes}, {spare}; a true score below {self.seen_below:.2f} shows 4 times in 5"
