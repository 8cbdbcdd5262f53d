"""False alarms, delays and leads of detectors, from paths and bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

RATES = np.linspace(0.005, 0.2, 40)  # false-alarm probabilities over which delays are averaged


@dataclass(frozen=True)
class Share:
    """A proportion with its exact 95 % interval (Clopper and Pearson, 1934)."""

    hits: int
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the two-sided 95 % interval."""
        low = beta.ppf(0.025, self.hits, self.total - self.hits + 1) if self.hits else 0.0
        left = self.total - self.hits
        high = beta.ppf(0.975, self.hits + 1, left) if left else 1.0
        return float(low), float(high)


def tuned_bound(maxima: np.ndarray, rate: float) -> float:
    """The lowest bound at which at most a share `rate` of null runs ever alarms.

    Args:
        maxima: highest point of each null run's path, shape (runs,).
    """
    allowed = int(np.floor(rate * len(maxima) + 1e-9))
    return float(np.sort(maxima)[::-1][allowed])


def first_above(path: np.ndarray, steps: Sequence[int], bound: float, since: int) -> int | None:
    """First step from `since` on at which the path lies above the bound."""
    hits = np.flatnonzero((path > bound) & (np.asarray(steps) >= since))
    return int(steps[hits[0]]) if len(hits) else None


def delays(
    paths: Sequence[np.ndarray], steps: Sequence[int], bound: float, onset: int
) -> np.ndarray:
    """Steps from the onset to the alarm, shape (runs,); the rest of the run where none came."""
    rest = steps[-1] - onset
    found = [first_above(path, steps, bound, onset) for path in paths]
    return np.array([rest if at is None else at - onset for at in found], dtype=float)


def area(
    maxima: np.ndarray, paths: Sequence[np.ndarray], steps: Sequence[int], onset: int
) -> float:
    """Area under the curve of delay over false-alarm probability; 0 is best, 1 never alarms.

    The mean over `RATES` of the mean delay at the bound tuned to the rate, as a share of what was
    left of the run at the onset.
    """
    rest = steps[-1] - onset
    each = [delays(paths, steps, tuned_bound(maxima, rate), onset).mean() for rate in RATES]
    return float(np.mean(each)) / rest
