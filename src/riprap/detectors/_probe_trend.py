"""Trend of each probe: in how many steps a behavior breaks at the present pace."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from pydantic import Field
from scipy.special import ndtr

from riprap._formatting import format_steps
from riprap.detectors._base import Detector
from riprap.detectors._derived import fitted_trends, score, threshold_rank, time_to_floor
from riprap.detectors._forecast import break_alert, describe_broken
from riprap.detectors._history import BehaviorHistory
from riprap.detectors._run_clock import RunClock
from riprap.types import Alert, Forecast, Level

BRIEF = 4  # steps: a line over fewer must hold in its last step too, because one step is noisy
# Most falls end before a break: the time to it is that at the present pace times a factor whose
# logarithm is normal. Fitted by likelihood to some 17,000 forecasts of unbroken behaviors in the
# exploratory runs (results/onset); experiments/onset prints how often a break came.
SLOWER = 1.55  # median of the factor
DOUBT = 0.86  # standard deviation of its logarithm
SUDDEN = 0.007 / 50  # probability of a break in a step although nothing falls
NEAR = 0.1  # of the mean margin at the start: a probe with less is near failing


class ProbeTrend(Detector):
    """Levels by the number of steps in which a behavior breaks at the present pace.

    A line through the last evaluations extrapolates the margin of each probe, in the run's clock:
    the sum of the learning rates, with those to come where the schedule is known. The behavior
    breaks where the threshold margin of the extrapolated probes reaches 0. Probes are looked at
    one by one, because margins may spread while their mean stands still. Each trend is drawn to
    the mean trend, because trends of single probes are noisy.

    `critical`: broken, or it breaks within `critical` steps. `warning`: within `warning` steps.
    `watch`: within `horizon` steps. Where evaluations are farther apart than that, the gap counts:
    a break before the next evaluation is `critical`.

    Where the plan of the run ends before, the forecast ends with it: that the behavior will not
    break before is a forecast, with its probability.

    The numbers were chosen on recorded runs (results/onset), by the rule that is stated there.

    Attributes:
        evaluations: number of last evaluations that the line goes through.
        own: weight of a probe's own trend; the rest is that of the mean trend of all probes.
        critical, warning, horizon: in optimizer steps.
        typical, early, late: median and bounds of the 80 % interval of the steps to the break, as
            multiples of those at the present pace: most falls become faster.
    """

    kind: Literal["probe_trend"] = "probe_trend"
    evaluations: int = Field(default=3, ge=2)
    own: float = Field(default=0.4, ge=0, le=1)
    critical: int = Field(default=8, ge=1)
    warning: int = Field(default=20, ge=1)
    horizon: int = Field(default=50, ge=1)
    typical: float = Field(default=0.75, gt=0)
    early: float = Field(default=0.35, gt=0)
    late: float = Field(default=2.0, gt=0)

    def check(self, history: BehaviorHistory) -> Alert | None:
        """See `Detector.check`."""
        return self.evaluate(history)[0]

    def forecast(self, history: BehaviorHistory) -> Forecast | None:
        """Forecast the number of steps until the score is under its floor."""
        return self.evaluate(history)[1]

    def evaluate(self, history: BehaviorHistory) -> tuple[Alert | None, Forecast | None]:
        """See `Detector.evaluate`."""
        if score(history.margins[-1]) < history.floor:
            steps, forecast = 0.0, Forecast(0.0, 0.0, 0.0, self.horizon, 1.0)
        elif len(history.steps) < self.evaluations:
            return None, None
        else:
            steps = self.steps_to_break(history)
            forecast = self._forecast(history, steps)
        level = self._level(history, steps)
        if level is None:
            return None, forecast
        text = describe(history, forecast)
        return break_alert(history, level, self.kind, text, forecast), forecast

    def _forecast(self, history: BehaviorHistory, steps: float) -> Forecast:
        """Return the forecast, given the number of steps at the present pace, which may be `inf`.

        It ends with the plan, and has the probability of a break before its end.
        """
        clock, horizon = RunClock.of(history, self.evaluations), self._reach(history)
        if clock.schedule is not None:
            horizon = min(horizon, clock.schedule.remaining(history.step))
        median, low, high = (
            factor * steps if factor * steps <= horizon else float("inf")
            for factor in (self.typical, self.early, self.late)
        )
        ahead = float(clock.ahead(np.array([horizon]))[0])
        probability = probability_of_break(ahead, self._time_to_break(history), horizon)
        return Forecast(median, low, high, horizon, probability)

    def _level(self, history: BehaviorHistory, steps: float) -> Level | None:
        gap = _gap(history)
        if steps <= max(self.critical, gap):
            return Level.CRITICAL
        if steps <= max(self.warning, gap):
            return Level.WARNING
        return Level.WATCH if steps <= self._reach(history) else None

    def _reach(self, history: BehaviorHistory) -> int:
        """Return the number of steps that are extrapolated: to the next evaluation, at least."""
        return max(self.horizon, _gap(history))

    def _time_to_break(self, history: BehaviorHistory) -> float:
        """Return the time until the break at the present pace, in the clock; `inf`: never."""
        numbers = [self.evaluations]
        if history.steps[-1] - history.steps[-self.evaluations] < BRIEF:
            numbers.append(2)
        times = []
        for evaluations in numbers:
            trends = self._trends(history, RunClock.of(history, evaluations))
            times.append(time_to_floor(history.margins[-1], trends, history.floor))
        return max(times)

    def steps_to_break(self, history: BehaviorHistory) -> float:
        """Return the number of steps until the extrapolated behavior breaks.

        `inf`: not within the horizon, or the last gap if that is longer; or not in the plan.
        """
        steps = self._steps_along_line(history, self.evaluations)
        if history.steps[-1] - history.steps[-self.evaluations] < BRIEF:
            steps = max(steps, self._steps_along_line(history, 2))
        return steps

    def _steps_along_line(self, history: BehaviorHistory, evaluations: int) -> float:
        """Return the same along a line through so many last evaluations."""
        clock = RunClock.of(history, evaluations)
        trends = self._trends(history, clock)
        steps = np.arange(1, self._reach(history) + 1)
        rank = threshold_rank(len(trends), history.floor)
        margins = history.margins[-1] + np.multiply.outer(clock.ahead(steps), trends)
        under = np.flatnonzero(np.partition(margins, rank, axis=1)[:, rank] <= 0)
        return float(steps[under[0]]) if len(under) else float("inf")

    def _trends(self, history: BehaviorHistory, clock: RunClock) -> np.ndarray:
        """Return the change of each margin in a unit of the clock; 0 where no time has passed."""
        margins = np.array(history.margins[-len(clock.times) :])
        if not clock.times[-1] > clock.times[0]:
            return np.zeros(margins.shape[1])
        return fitted_trends(clock.times, margins, self.own)


def probability_of_break(ahead: float, time: float, steps: int) -> float:
    """Return the probability of a break in the time ahead.

    Args:
        ahead: time of the clock until the end of the forecast.
        time: until the break at the present pace, in the same clock.
        steps: until the end of the forecast.
    """
    sudden = 1 - math.exp(-SUDDEN * steps)
    if not (ahead > 0 and 0 < time < float("inf")):
        return sudden
    falling = float(ndtr(math.log(ahead / (SLOWER * time)) / DOUBT))
    return sudden + (1 - sudden) * falling


def _gap(history: BehaviorHistory) -> int:
    """Return the number of steps between the last two evaluations."""
    return history.steps[-1] - history.steps[-2] if len(history.steps) > 1 else 1


def describe(history: BehaviorHistory, forecast: Forecast) -> str:
    """Say what was lost, when the behavior breaks at this pace, and what would change it."""
    if forecast.is_broken:
        return describe_broken(history)
    now, start = history.margins[-1], history.margins[0]
    lost = 1 - now.mean() / start.mean() if start.mean() > 0 else 0.0
    near = int(((now > 0) & (now < NEAR * start.mean())).sum())
    failing = int((now <= 0).sum())
    text = f"{max(lost, 0):.0%} of the mean margin is lost in {format_steps(history.step)}; "
    text += f"{failing} of {len(now)} probes fail, and {near} pass with less than a tenth of the "
    text += "mean margin at the start; "
    low, median = (max(steps, 1) for steps in (forecast.low, forecast.median))
    late = "or more" if forecast.high == float("inf") else f"to {max(forecast.high, 1):.0f}"
    text += f"at this pace a break is expected in {format_steps(round(median))} "
    text += f"(80 % interval: {low:.0f} {late})"
    return text + ": lower the learning rate, or replay more examples of the behavior"
