"""Every detector as a path and a bound: it alerts where the path is above the bound.

Its false-alarm rate can then be swept without evaluating the detector again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import beta

from riprap.detectors import (
    BehaviorHistory,
    Detector,
    ForecastDetector,
    Sequential,
    SlopeDetector,
    Threshold,
    threshold_margin,
)

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


FAR = 10**6  # steps; a horizon beyond which no forecast says anything


def path_of(detector: Detector, history: BehaviorHistory) -> np.ndarray:
    """Return the number that is compared with the bound at each probe evaluation, or −inf."""
    if isinstance(detector, ForecastDetector):
        return _soonest(detector, history)
    read = detector.statistic if isinstance(detector, Sequential) else partial(_beyond, detector)
    path = read(history)
    missing = len(history.steps) - len(path)
    return np.concatenate([np.full(missing, -np.inf), path])


def bound_of(detector: Detector) -> float:
    """Return the bound at which the detector alerts."""
    if isinstance(detector, ForecastDetector):
        return -float(detector.horizon) - 0.5
    if isinstance(detector, Sequential):
        return detector.alert_threshold
    assert isinstance(detector, Threshold)
    return detector.value if detector.side == "above" else -detector.value


def _soonest(detector: ForecastDetector, history: BehaviorHistory) -> np.ndarray:
    """Return minus the late bound of the time to the floor, if enough of the margin is spent."""
    far = detector.model_copy(update={"horizon": FAR})
    start = threshold_margin(history.margins[0], history.floor)
    path = np.full(len(history.steps), -np.inf)
    for place, step in enumerate(history.steps):
        known = history.truncated(step)
        forecast = far.forecast(known)
        if forecast is not None and known.threshold_margin <= (1 - detector.spent) * start:
            path[place] = -forecast.high
    return path


def _beyond(detector: Detector, history: BehaviorHistory) -> np.ndarray:
    """Return the least excess of a signal over its threshold in consecutive probe evaluations."""
    assert isinstance(detector, Threshold)
    values = np.array([value for _, value in history.series(detector.signal)])
    if not len(values):
        return values
    if detector.relative:
        values = values / values[0]
    values = values if detector.side == "above" else -values
    padded = np.concatenate([np.full(detector.consecutive - 1, -np.inf), values])
    windows = np.lib.stride_tricks.sliding_window_view(padded, detector.consecutive)
    return windows.min(-1)


def name_of(detector: Detector) -> str:
    """Return the name of a detector in tables."""
    if isinstance(detector, (SlopeDetector, ForecastDetector)):
        return f"{detector.kind}, critical"
    signal = getattr(detector, "signal", getattr(detector, "of", ""))
    return f"{detector.kind}({signal})"
