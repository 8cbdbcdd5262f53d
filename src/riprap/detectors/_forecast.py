"""Forecast: alerts by the time at which a behaviour is expected to reach its floor."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from riprap.detectors._base import Detector
from riprap.detectors._history import BehaviorHistory, threshold_margin, score
from riprap.detectors._trend import Z80, threshold_margins, shaped_changes, fit_trend
from riprap.types import Alert, Forecast, Level, Reading


class ForecastDetector(Detector):
    """`critical` when the 80 % interval of the time to the floor lies inside the horizon.

    `watch` when its early bound does. Whether a decline is established is for other detectors to
    say: a forecast that may be wrong is no `warning`.

    The deciding margin is followed: the one whose sign decides whether the score is under its
    floor. The early bound lets it fall on at its fastest, the late bound lets the fall fade
    soonest.

    Attributes:
        horizon: how far ahead to look, in optimizer steps.
        memory: over how many recent steps a line is fitted to the changes.
        persistence: how long the trend goes on, in multiples of how long it has lasted: for the
            late bound, the median and the early bound.
        doubt: standard error of the change that is added for bends, as a share of it.
        spent: share of the deciding margin at the start that must be gone before `critical` is
            said: a behaviour that has most of its margin left may waver.
        least_steps: steps to have seen before anything but a broken floor is said.
        declined: share of the start's mean margin that must be gone as well: the deciding margin is
            that of a few probes, and may dive though the behaviour as a whole has not declined.
    """

    kind: Literal["forecast"] = "forecast"
    horizon: int = Field(default=50, ge=1)
    memory: float = Field(default=5.0, gt=0)
    persistence: tuple[float, float, float] = (1.0, 2.0, 16.0)
    doubt: float = Field(default=0.3, ge=0)
    spent: float = Field(default=0.5, ge=0, le=1)
    least_steps: int = Field(default=3, ge=1)
    # Left out of a protocol's hash where it is 0: it is younger than the first frozen ones.
    declined: float = Field(default=0.0, ge=0, exclude_if=lambda value: value == 0)

    def changes(self, track: BehaviorHistory, values: np.ndarray) -> np.ndarray:
        """Change of a deciding margin in each step, shape (steps,)."""
        return shaped_changes(track, values)

    def forecast(self, track: BehaviorHistory) -> Forecast | None:
        """Steps until the deciding margin reaches 0."""
        if score(track.margins[-1]) < track.floor:
            return Forecast(0.0, 0.0, 0.0, self.horizon)
        if track.step < self.least_steps or len(track.steps) < 2:
            return None
        values = threshold_margins(track)
        now = fit_trend(values, track.steps, self.changes(track, values), self.memory, self.doubt)
        late, median, early = (
            self._within_horizon(now.steps_to_zero(z, persistence))
            for z, persistence in zip((Z80, 0.0, -Z80), self.persistence, strict=True)
        )
        return Forecast(median, early, late, self.horizon)

    def _within_horizon(self, steps: float) -> float:
        return steps if steps <= self.horizon else float("inf")

    def check(self, track: BehaviorHistory) -> Alert | None:
        """See `Detector.check`."""
        return self.evaluate(track)[0]

    def evaluate(self, track: BehaviorHistory) -> tuple[Alert | None, Forecast | None]:
        """See `Detector.judge`."""
        forecast = self.forecast(track)
        return self._alert(forecast, track), forecast

    def _alert(self, forecast: Forecast | None, track: BehaviorHistory) -> Alert | None:
        level = None if forecast is None else self.alert_level(forecast, track)
        if forecast is None or level is None:
            return None
        readings = (
            Reading.of(track.step, track.behavior, "margin_low", track.threshold_margin),
            Reading.of(track.step, track.behavior, "score", score(track.margins[-1]), "share"),
        )
        text = describe(forecast, track)
        return Alert(track.step, track.behavior, level, self.kind, text, readings, forecast)

    def alert_level(self, forecast: Forecast, track: BehaviorHistory) -> Level | None:
        """How alarming a forecast is."""
        broken = forecast.high == 0
        if broken or (forecast.predicts_break and self._has_declined(track)):
            return Level.CRITICAL
        return Level.WATCH if forecast.low <= self.horizon else None

    def _has_declined(self, track: BehaviorHistory) -> bool:
        """Whether enough is gone of the deciding margin, and of the mean margin."""
        if track.threshold_margin > (1 - self.spent) * threshold_margin(track.margins[0], track.floor):
            return False
        start, now = track.margins[0].mean(), track.margins[-1].mean()
        return self.declined == 0 or bool(now <= (1 - self.declined) * start)


def describe(forecast: Forecast, track: BehaviorHistory) -> str:
    """One line for people."""
    if forecast.high == 0:
        now = score(track.margins[-1])
        return f"broken: score {now:.2f} is under its floor {track.floor:.2f}"
    if forecast.median == float("inf"):
        return f"may reach its floor in {forecast.low:.0f} steps or more"
    late = "later" if forecast.high == float("inf") else f"{forecast.high:.0f}"
    return (
        f"expected to reach its floor {track.floor:.2f} in {forecast.median:.0f} steps "
        f"({forecast.low:.0f} to {late})"
    )
