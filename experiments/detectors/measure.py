"""False alarms and delays of detectors, from paths and bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

RATES = np.linspace(0.005, 0.2, 40)  # false-alarm probabilities over which delays are averaged


@dataclass(frozen=True)
class Proportion:
    """A proportion with its exact 95 % interval (Clopper and Pearson, 1934)."""

    hits: int
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        """Return the bounds of the two-sided 95 % interval."""
        low = beta.ppf(0.025, self.hits, self.total - self.hits + 1) if self.hits else 0.0
        misses = self.total - self.hits
        high = beta.ppf(0.975, self.hits + 1, misses) if misses else 1.0
        return float(low), float(high)


def tuned_bound(maxima: np.ndarray, rate: float) -> float:
    """Return the lowest bound at which at most a share `rate` of null runs ever alarms.

    Args:
        maxima: highest point of each null run's path, shape (runs,).
    """
    allowed = int(np.floor(rate * len(maxima) + 1e-9))
    return float(np.sort(maxima)[::-1][allowed])


def first_above(path: np.ndarray, steps: Sequence[int], bound: float, since: int) -> int | None:
    """Return the first step, not before `since`, at which the path is above the bound."""
    hits = np.flatnonzero((path > bound) & (np.asarray(steps) >= since))
    return int(steps[hits[0]]) if len(hits) else None


def delays(
    paths: Sequence[np.ndarray], steps: Sequence[int], bound: float, onset: int
) -> np.ndarray:
    """Return the steps from the onset to the alarm, or to the end of the run, shape (runs,)."""
    rest = steps[-1] - onset
    alarms = [first_above(path, steps, bound, onset) for path in paths]
    return np.array([rest if at is None else at - onset for at in alarms], dtype=float)


def area(
    maxima: np.ndarray, paths: Sequence[np.ndarray], steps: Sequence[int], onset: int
) -> float:
    """Return the area under the curve of delay over false-alarm probability, from 0 (best) to 1.

    The mean over `RATES` of the mean delay at the bound tuned to the rate, as a share of the steps
    after the onset.
    """
    rest = steps[-1] - onset
    each = [delays(paths, steps, tuned_bound(maxima, rate), onset).mean() for rate in RATES]
    return float(np.mean(each)) / rest
