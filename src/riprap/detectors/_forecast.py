"""Forecast: alerts on the predicted number of steps until a behavior reaches its floor."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from riprap.detectors._base import Detector
from riprap.detectors._derived import score, threshold_margin
from riprap.detectors._history import BehaviorHistory
from riprap.detectors._trend import (
    Z80,
    fading_memory,
    fit_trend,
    recent_threshold_margins,
    shaped_changes,
)
from riprap.types import Alert, Forecast, Level, Reading


class ForecastDetector(Detector):
    """`critical` when the 80 % interval of the time to the floor lies inside the horizon.

    `watch` when its early bound does. There is no `warning`, because a forecast may be wrong;
    other detectors establish declines.

    The forecast extrapolates the threshold margin, whose sign decides whether the score is under
    its floor. For the early bound the margin falls at its fastest rate; for the late bound the fall
    slows down soonest.

    Attributes:
        horizon: forecast horizon, in optimizer steps.
        memory: number of recent steps over which a line is fitted to the changes.
        persistence: duration of the trend, in multiples of its age so far: for the late bound, the
            median and the early bound.
        doubt: standard error of the change that is added for bends, as a fraction of the change.
        spent: fraction of the threshold margin at the start that must be lost before `critical`: a
            behavior with most of its margin left may fluctuate.
        least_steps: number of steps before any alert but that of a broken floor.
        declined: fraction of the mean margin at the start that must be lost as well: the threshold
            margin is that of a few probes, and may fall although the behavior has not declined.
    """

    kind: Literal["forecast"] = "forecast"
    horizon: int = Field(default=50, ge=1)
    memory: float = Field(default=5.0, gt=0)
    persistence: tuple[float, float, float] = (1.0, 2.0, 16.0)
    doubt: float = Field(default=0.3, ge=0)
    spent: float = Field(default=0.5, ge=0, le=1)
    least_steps: int = Field(default=3, ge=1)
    # Left out of a policy's hash where it is 0: the first frozen policies did not have it.
    declined: float = Field(default=0.0, ge=0, exclude_if=lambda value: value == 0)

    def changes(self, history: BehaviorHistory, threshold_margins: np.ndarray) -> np.ndarray:
        """Return the change in each step between the latest evaluations, shape (steps,).

        Args:
            threshold_margins: of these evaluations.
        """
        return shaped_changes(history, threshold_margins)

    def forecast(self, history: BehaviorHistory) -> Forecast | None:
        """Forecast the number of steps until the threshold margin reaches 0."""
        if score(history.margins[-1]) < history.floor:
            return Forecast(0.0, 0.0, 0.0, self.horizon)
        if history.step < self.least_steps or len(history.steps) < 2:
            return None
        memory = fading_memory(history, self.memory)
        changes = self.changes(history, recent_threshold_margins(history, memory))
        trend = fit_trend(history, changes, memory, self.doubt)
        late, median, early = (
            self._within_horizon(trend.steps_to_zero(z, persistence))
            for z, persistence in zip((Z80, 0.0, -Z80), self.persistence, strict=True)
        )
        return Forecast(median, early, late, self.horizon)

    def _within_horizon(self, steps: float) -> float:
        return steps if steps <= self.horizon else float("inf")

    def check(self, history: BehaviorHistory) -> Alert | None:
        """See `Detector.check`."""
        return self.evaluate(history)[0]

    def evaluate(self, history: BehaviorHistory) -> tuple[Alert | None, Forecast | None]:
        """See `Detector.evaluate`."""
        forecast = self.forecast(history)
        return self._alert(forecast, history), forecast

    def _alert(self, forecast: Forecast | None, history: BehaviorHistory) -> Alert | None:
        level = None if forecast is None else self.alert_level(forecast, history)
        if forecast is None or level is None:
            return None
        text = describe(forecast, history)
        return break_alert(history, level, self.kind, text, forecast)

    def alert_level(self, forecast: Forecast, history: BehaviorHistory) -> Level | None:
        """Return the level of a forecast; None: no alert."""
        if forecast.is_broken or (forecast.predicts_break and self._has_declined(history)):
            return Level.CRITICAL
        return Level.WATCH if forecast.low <= self.horizon else None

    def _has_declined(self, history: BehaviorHistory) -> bool:
        """Return whether enough of the threshold margin and of the mean margin is lost."""
        at_start = threshold_margin(history.margins[0], history.floor)
        if history.threshold_margin > (1 - self.spent) * at_start:
            return False
        start_mean, mean = history.margins[0].mean(), history.margins[-1].mean()
        return self.declined == 0 or bool(mean <= (1 - self.declined) * start_mean)


def break_alert(
    history: BehaviorHistory, level: Level, detector: str, text: str, forecast: Forecast
) -> Alert:
    """Return an alert about a break, with the threshold margin and the score as its readings."""
    at = (history.step, history.behavior)
    readings = (
        Reading.of(*at, "margin_low", history.threshold_margin),
        Reading.of(*at, "score", score(history.margins[-1]), "share"),
    )
    return Alert(*at, level, detector, text, readings, forecast)


def describe_broken(history: BehaviorHistory) -> str:
    """Describe a behavior that is broken in one line."""
    value = score(history.margins[-1])
    return f"broken: score {value:.2f} is under its floor {history.floor:.2f}"


def describe(forecast: Forecast, history: BehaviorHistory) -> str:
    """Describe a forecast in one line."""
    if forecast.is_broken:
        return describe_broken(history)
    if forecast.median == float("inf"):
        return f"the score could fall under its floor in {forecast.low:.0f} steps or later"
    late = "or more" if forecast.high == float("inf") else f"to {forecast.high:.0f}"
    return (
        f"the score is expected to fall under its floor {history.floor:.2f} in "
        f"{forecast.median:.0f} steps (80 % interval: {forecast.low:.0f} {late})"
    )
