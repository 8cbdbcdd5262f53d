"""Every detector as a path and a bound: it alerts where the path is above the bound.

Its false-alarm rate can then be swept without evaluating the detector again.
"""

from __future__ import annotations

import numpy as np

from riprap.detectors import (
    BehaviorHistory,
    Detector,
    ForecastDetector,
    Sequential,
    SlopeDetector,
    Threshold,
    threshold_margin,
)

FAR = 10**6  # steps; a horizon beyond which no forecast says anything


def path_of(detector: Detector, history: BehaviorHistory) -> np.ndarray:
    """Return the number that is compared with the bound at each probe evaluation, or −inf."""
    if isinstance(detector, ForecastDetector):
        return _soonest(detector, history)
    path = (
        detector.statistic(history)
        if isinstance(detector, Sequential)
        else _beyond(detector, history)
    )
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
    """Minus the late bound of the time to the floor, if enough of the margin is spent."""
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
    """Least excess of a signal over its threshold in consecutive probe evaluations."""
    assert isinstance(detector, Threshold)
    values = np.array([value for _, value in history.series(detector.signal)])
    if not len(values):
        return values
    if detector.relative:
        values = values / values[0]
    values = values if detector.side == "above" else -values
    windows = np.lib.stride_tricks.sliding_window_view(
        np.concatenate([np.full(detector.consecutive - 1, -np.inf), values]), detector.consecutive
    )
    return windows.min(-1)


def name_of(detector: Detector) -> str:
    """Return the name of a detector in tables."""
    if isinstance(detector, (SlopeDetector, ForecastDetector)):
        return f"{detector.kind}, critical"
    signal = getattr(detector, "signal", getattr(detector, "of", ""))
    return f"{detector.kind}({signal})"
