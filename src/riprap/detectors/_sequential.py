"""Sequential detectors: one number a visit, compared with a bound."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from riprap.detectors._base import Detector
from riprap.detectors._history import BehaviorHistory
from riprap.types import Alert, Level, Reading


class Sequential(Detector):
    """Alerts while its path lies above its bound.

    The path is apart from the bound, so that a study can sweep the bound on one path.

    Attributes:
        level: what an alert of this detector is worth.
    """

    level: Level = Level.WARNING
    description: ClassVar[str]

    @property
    def alert_threshold(self) -> float:
        """Above it the detector alerts."""
        raise NotImplementedError

    def statistic(self, track: BehaviorHistory) -> np.ndarray:
        """The number compared with the bound, after each visit; may be empty or NaN."""
        raise NotImplementedError

    def latest(self, track: BehaviorHistory) -> float | None:
        """The end of the path; None where there is none."""
        path = self.statistic(track)
        return float(path[-1]) if len(path) else None

    def input_signal(self) -> str:
        """Name of the reading that the path is made of."""
        return "margin"

    def check(self, track: BehaviorHistory) -> Alert | None:
        """See `Detector.check`."""
        now = self.latest(track)
        if now is None or not now > self.alert_threshold:
            return None
        history = track.series(self.input_signal())
        readings = (Reading.of(history[-1][0], track.behavior, self.input_signal(), history[-1][1]),)
        text = f"{self.description}: {now:.3g} is above {self.alert_threshold:.3g}"
        return Alert(track.step, track.behavior, self.level, self.kind, text, readings)


def current_series(track: BehaviorHistory, signal: str) -> np.ndarray:
    """A signal's values at the visits; empty where the last visit did not read it."""
    history = track.series(signal)
    if not history or history[-1][0] != track.step:
        return np.zeros(0)
    return np.array([value for _, value in history])
