"""Every detector as a path and a bound: it alerts where the path lies above.

So its false-alarm rate can be swept without judging anything twice.
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


def path_of(detector: Detector, track: BehaviorHistory) -> np.ndarray:
    """The number that is compared with the bound, after each visit; −inf where there is none."""
    if isinstance(detector, ForecastDetector):
        return _soonest(detector, track)
    path = (
        detector.statistic(track) if isinstance(detector, Sequential) else _beyond(detector, track)
    )
    missing = len(track.steps) - len(path)
    return np.concatenate([np.full(missing, -np.inf), path])


def bound_of(detector: Detector) -> float:
    """The bound at which the detector as given alerts."""
    if isinstance(detector, ForecastDetector):
        return -float(detector.horizon) - 0.5
    if isinstance(detector, Sequential):
        return detector.alert_threshold
    assert isinstance(detector, Threshold)
    return detector.value if detector.side == "above" else -detector.value


def _soonest(detector: ForecastDetector, track: BehaviorHistory) -> np.ndarray:
    """Minus the late bound of the time to the floor, where enough of the margin is spent."""
    far = detector.model_copy(update={"horizon": FAR})
    start = threshold_margin(track.margins[0], track.floor)
    path = np.full(len(track.steps), -np.inf)
    for place, step in enumerate(track.steps):
        known = track.truncated(step)
        forecast = far.forecast(known)
        if forecast is not None and known.threshold_margin <= (1 - detector.spent) * start:
            path[place] = -forecast.high
    return path


def _beyond(detector: Detector, track: BehaviorHistory) -> np.ndarray:
    """The least that a threshold's signal was beyond it over so many visits."""
    assert isinstance(detector, Threshold)
    values = np.array([value for _, value in track.series(detector.signal)])
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
    """How tables call it."""
    if isinstance(detector, (SlopeDetector, ForecastDetector)):
        return f"{detector.kind}, critical"
    signal = getattr(detector, "signal", getattr(detector, "of", ""))
    return f"{detector.kind}({signal})"
