"""Judging a recorded history again: any detector, on exactly what a monitor measured."""

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
    watched: int = 1,
) -> BehaviorHistory:
    """The track of a behaviour from its record.

    Args:
        margins: by step of visit, shape (n_probes,).
        readings: of the run; those of other behaviours are passed over.
        watched: how many behaviours the run watched.
    """
    track = BehaviorHistory(behavior, floor, n_behaviors=watched)
    for step, values in margins.items():
        track.add_margins(step, values)
    for reading in readings:
        if reading.behavior != behavior or reading.value is None:
            continue
        if reading.signal == "interference":
            track.predicted[reading.step] = reading.value
        else:
            track.signals.setdefault(reading.signal, []).append((reading.step, reading.value))
    return track


def reevaluate(detector: Detector, track: BehaviorHistory) -> list[Alert]:
    """The alert that stood after each visit, where there was one."""
    alerts = [detector.check(track.truncated(step)) for step in track.steps]
    return [alert for alert in alerts if alert is not None]
