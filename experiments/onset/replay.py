"""Replay of recorded runs: what a monitor would have known at each of its probe evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from experiments.onset.trace import Trace
from riprap.detectors import AlertPolicy, BehaviorHistory, RateSchedule
from riprap.monitor import ProbeSchedule
from riprap.types import Forecast, Level

Judge = Callable[[BehaviorHistory], tuple[Level | None, Forecast | None]]


@dataclass
class Outcome:
    """What became of one behavior in one run, and what was said before.

    Attributes:
        broke: first step under the floor; None: never.
        first: first step at which each level, or a higher one, was said.
        evaluations: number of probe evaluations of the run.
        n_steps: number of steps of the run.
    """

    trace: Trace
    behavior: str
    broke: int | None
    first: dict[Level, int]
    evaluations: int
    n_steps: int

    def lead(self, level: Level) -> int | None:
        """Return by how many steps the level came before the break; None: no break, or no alert."""
        if self.broke is None or level not in self.first:
            return None
        return self.broke - self.first[level]


def histories(trace: Trace) -> dict[str, BehaviorHistory]:
    """Return an empty history of each behavior that starts at or above its floor."""
    n = len(trace.behaviors)
    return {
        name: BehaviorHistory(name, own.floor, n_behaviors=n)
        for name, own in trace.behaviors.items()
        if not trace.starts_broken(name)
    }


def replay(trace: Trace, judge: Judge, probe_every: int = 20, plan: bool = True) -> list[Outcome]:
    """Judge a run at the steps of a monitor without a budget; return one outcome per behavior.

    The schedule is the monitor's own, fed with the forecasts of `judge`. An evaluation that falls
    between two recorded steps is moved to the later one.

    Args:
        plan: the monitor knows the learning rates to come.
    """
    known = histories(trace)
    sums = np.concatenate([[0.0], np.cumsum(trace.rates)])
    if plan:
        schedule_of_rates = RateSchedule.of_rates(0, trace.rates.tolist())
        for history in known.values():
            history.schedule = schedule_of_rates
    schedule = ProbeSchedule(probe_every)
    first: dict[str, dict[Level, int]] = {name: {} for name in known}
    evaluations = 0
    read = 0
    for at, step in enumerate(trace.steps.tolist()):
        for name, history in known.items():
            own = trace.behaviors[name].interference
            for taken in range(read + 1, step + 1):
                value = float(own[taken - 1])
                history.add_interference(taken, None if np.isnan(value) else value)
        read = step
        last = at == len(trace.steps) - 1
        if at and not last and not schedule.is_due(step, known.values()):
            continue
        evaluations += 1
        forecasts = []
        for name, history in known.items():
            history.add_margins(step, trace.behaviors[name].margins[at], float(sums[step]))
            level, forecast = judge(history)
            forecasts.append(forecast)
            for own_level in Level:
                if level is not None and level.rank >= own_level.rank:
                    first[name].setdefault(own_level, step)
        schedule.plan(step, forecasts)
    return [
        Outcome(trace, name, trace.break_step(name), first[name], evaluations, trace.n_steps)
        for name in known
    ]


def judge_by(policy: AlertPolicy) -> Judge:
    """Return the judgment of a policy: its highest level, and its first forecast."""

    def judge(history: BehaviorHistory) -> tuple[Level | None, Forecast | None]:
        results = [detector.evaluate(history) for detector in policy.detectors]
        levels = [alert.level for alert, _ in results if alert is not None]
        forecasts = [forecast for _, forecast in results if forecast is not None]
        highest = max(levels, key=lambda level: level.rank, default=None)
        return highest, forecasts[0] if forecasts else None

    return judge


def judge_all(
    traces: Iterator[Trace] | list[Trace], judge: Judge, probe_every: int = 20, plan: bool = True
) -> list[Outcome]:
    """Replay several runs."""
    return [outcome for trace in traces for outcome in replay(trace, judge, probe_every, plan)]
