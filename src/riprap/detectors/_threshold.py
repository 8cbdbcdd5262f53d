"""Threshold: a signal beyond a fixed value for a number of consecutive probe evaluations."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from riprap.detectors._base import Detector
from riprap.detectors._history import BehaviorHistory
from riprap.types import Alert, Level, Reading


class Threshold(Detector):
    """Alert while `signal` is below (or above) `value` for `consecutive` probe evaluations.

    Attributes:
        signal: name of a behavior's reading at probe evaluations; "score", "margin" and
            "margin_low" always exist.
        relative: interpret `value` as a fraction of the signal's value at the start.
    """

    kind: Literal["threshold"] = "threshold"
    signal: str
    side: Literal["below", "above"]
    value: float
    consecutive: int = Field(default=1, ge=1)
    relative: bool = False
    level: Level = Level.WARNING

    def check(self, history: BehaviorHistory) -> Alert | None:
        """See `Detector.check`."""
        series = history.series(self.signal)
        if len(series) < self.consecutive:
            return None
        bound = self.value * series[0][1] if self.relative else self.value
        recent = series[-self.consecutive :]
        beyond = [value < bound if self.side == "below" else value > bound for _, value in recent]
        if not all(beyond) or recent[-1][0] != history.step:
            return None
        now = recent[-1][1]
        return Alert(
            history.step,
            history.behavior,
            self.level,
            f"threshold({self.signal})",
            f"{self.signal} is {now:.3g}, {self.side} {bound:.3g} for {self.consecutive} "
            "probe evaluations",
            tuple(Reading.of(step, history.behavior, self.signal, value) for step, value in recent),
        )
