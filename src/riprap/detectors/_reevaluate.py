"""Re-evaluation of a recorded history: any detector, on exactly what a monitor measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from riprap.detectors._base import Detector
from riprap.detectors._history import BehaviorHistory
from riprap.types import Alert, Reading


def history_from_record(
    behavior: str,
    floor: float,
    margins: Mapping[int, np.ndarray],
    readings: Iterable[Reading],
    n_behaviors: int = 1,
) -> BehaviorHistory:
    """Rebuild the history of a behavior from its record.

    Args:
        margins: by step of the probe evaluation, shape (n_probes,).
        readings: all readings of the run; those of other behaviors are ignored.
        n_behaviors: number of behaviors that the run monitored.
    """
    history = BehaviorHistory(behavior, floor, n_behaviors=n_behaviors)
    for step, values in margins.items():
        history.add_margins(step, values)
    for reading in readings:
        if reading.behavior != behavior:
            continue
        if reading.signal == "interference":
            history.add_interference(reading.step, reading.value)
        elif reading.value is not None:
            history.signals.setdefault(reading.signal, []).append((reading.step, reading.value))
    return history


def reevaluate(detector: Detector, history: BehaviorHistory) -> list[Alert]:
    """Return the alert after each probe evaluation, where there was one."""
    alerts = [detector.check(history.truncated(step)) for step in history.steps]
    return [alert for alert in alerts if alert is not None]
