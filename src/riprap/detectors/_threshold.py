"""Threshold: a signal on the wrong side of a number for so many checks in a row."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from riprap.detectors._base import Detector
from riprap.detectors._history import BehaviorHistory
from riprap.types import Alert, Level, Reading


class Threshold(Detector):
    """Alerts while `signal` is below (or above) `value` for `consecutive` visits.

    Attributes:
        signal: name of a behaviour's reading, as it stands at visits; "score", "margin" and
            "margin_low" always exist.
        relative: read the value as a share of the signal's value at the start.
    """

    kind: Literal["threshold"] = "threshold"
    signal: str
    side: Literal["below", "above"]
    value: float
    consecutive: int = Field(default=1, ge=1)
    relative: bool = False
    level: Level = Level.WARNING

    def check(self, track: BehaviorHistory) -> Alert | None:
        """See `Detector.check`."""
        history = track.series(self.signal)
        if len(history) < self.consecutive:
            return None
        bound = self.value * history[0][1] if self.relative else self.value
        recent = history[-self.consecutive :]
        beyond = [value < bound if self.side == "below" else value > bound for _, value in recent]
        if not all(beyond) or recent[-1][0] != track.step:
            return None
        now = recent[-1][1]
        return Alert(
            track.step,
            track.behavior,
            self.level,
            f"threshold({self.signal})",
            f"{self.signal} is {now:.3g}, {self.side} {bound:.3g} for {self.consecutive} checks",
            tuple(Reading.of(step, track.behavior, self.signal, value) for step, value in recent),
        )
