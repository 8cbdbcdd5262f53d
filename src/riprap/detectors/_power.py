"""Power of a probe set: what it can tell of the behavior, and how far it is from its floor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from riprap._formatting import format_steps
from riprap.detectors._derived import threshold_rank

CHANCE = 0.8  # with which a loss is called visible
Z95 = float(stats.norm.ppf(0.975))


@dataclass(frozen=True)
class Power:
    """What a probe set can tell, if its probes are a random sample of those that matter.

    Attributes:
        n_probes: number of probes.
        spare: number of probes that may stop passing before the behavior is broken.
        seen_below: largest true score under which the measured score is below the floor with
            probability 0.8.
        n_groups: number of categories of the probes; None: unknown.
        within: number of steps after which a fall has been evaluated at the latest; None: unknown.
    """

    n_probes: int
    spare: int
    seen_below: float
    n_groups: int | None = None
    within: int | None = None

    @classmethod
    def of(
        cls,
        margins: np.ndarray,
        floor: float,
        categories: Sequence[str] | None = None,
        within: int | None = None,
    ) -> Power:
        """Return the power of a probe set.

        Args:
            margins: shape (n_probes,).
            categories: category of each probe.
            within: longest gap between two evaluations, in steps.
        """
        n = len(margins)
        spare = int((margins > 0).sum()) - _needed(n, floor)
        groups = None if categories is None else len(set(categories))
        return cls(n, spare, cls.seen_with(n, floor), groups, within)

    @staticmethod
    def seen_with(n_probes: int, floor: float) -> float:
        """Return the largest true score that shows as a score below the floor 4 times in 5."""
        needed = _needed(n_probes, floor)
        # P(X < needed) for X ~ Binomial(n, p) is that of a Beta(needed, n − needed + 1) above p.
        return float(stats.beta.isf(CHANCE, needed, n_probes - needed + 1))

    def __str__(self) -> str:
        """Return it in one sentence without its end."""
        probes = "1 probe" if self.n_probes == 1 else f"{self.n_probes} probes"
        if self.n_groups is not None:
            probes += f" in {self.n_groups} group{'' if self.n_groups == 1 else 's'}"
        if self.spare < 0:
            return f"{probes}: the score is under the floor"
        text = f"{probes}: the behavior is broken when {self.spare + 1} more fail"
        text += "s" if not self.spare else ""
        text += f"; a fall of the true score below {self.seen_below:.2f} is seen in 4 of 5 cases"
        if self.within is not None:
            text += f", within {format_steps(self.within)}"
        return f"{text}; a smaller fall is seen more rarely"


def score_interval(score: float, n_probes: int) -> tuple[float, float]:
    """Return the 95 % interval of a score by Wilson (1927), if probes are a random sample.

    Also for the mean of numbers in [0, 1], such as F1: none of the same mean varies more than zeros
    and ones do, so the interval is wide enough.

    Args:
        score: share of the probes that pass.
    """
    shrunk = 1 + Z95**2 / n_probes
    center = (score + Z95**2 / (2 * n_probes)) / shrunk
    half = Z95 * math.sqrt(score * (1 - score) / n_probes + Z95**2 / (4 * n_probes**2)) / shrunk
    low = 0.0 if score <= 0 else center - half
    return low, 1.0 if score >= 1 else center + half


def _needed(n_probes: int, floor: float) -> int:
    """Return how many probes must pass, so that the score is not under the floor."""
    return n_probes - threshold_rank(n_probes, floor)
