"""Sequential detectors: one statistic per probe evaluation, compared with a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from riprap.detectors._base import Detector
from riprap.detectors._history import BehaviorHistory
from riprap.types import Alert, Level, Reading


class Sequential(Detector):
    """Detector that alerts while its statistic is above its threshold.

    The two are separate, so that a study can sweep the threshold over one series of the statistic.

    Attributes:
        level: level of the alerts.
        description: name of the statistic in alert messages.
    """

    level: Level = Level.WARNING
    description: ClassVar[str]

    @property
    def alert_threshold(self) -> float:
        """Value of the statistic above which the detector alerts."""
        raise NotImplementedError

    def statistic(self, history: BehaviorHistory) -> np.ndarray:
        """Return the statistic after each probe evaluation; may be empty, or NaN in places."""
        raise NotImplementedError

    def latest(self, history: BehaviorHistory) -> float | None:
        """Return the statistic after the last probe evaluation; None if it is empty.

        Subclasses compute it without the whole series.
        """
        values = self.statistic(history)
        return float(values[-1]) if len(values) else None

    def input_signal(self) -> str:
        """Return the name of the signal from which the statistic is computed."""
        return "margin"

    def check(self, history: BehaviorHistory) -> Alert | None:
        """See `Detector.check`."""
        now = self.latest(history)
        if now is None or not now > self.alert_threshold:
            return None
        series = history.series(self.input_signal())
        readings = (
            Reading.of(series[-1][0], history.behavior, self.input_signal(), series[-1][1]),
        )
        text = self.message(history, now)
        return Alert(history.step, history.behavior, self.level, self.kind, text, readings)

    def message(self, history: BehaviorHistory, statistic: float) -> str:
        """Return the text of the alert."""
        return f"{self.description}: {statistic:.3g} is above {self.alert_threshold:.3g}"


def current_series(history: BehaviorHistory, signal: str) -> np.ndarray:
    """Return a signal's values at the probe evaluations; empty if the last one has no value."""
    return np.array([value for _, value in current_readings(history, signal)])


def current_readings(history: BehaviorHistory, signal: str) -> Sequence[tuple[int, float]]:
    """Return a signal's readings at the probe evaluations; none if the last one has no reading."""
    series = history.series(signal)
    return series if series and series[-1][0] == history.step else ()
