"""Clock of a run: time measured in learning rates, as far as they are known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from riprap.detectors._history import BehaviorHistory
from riprap.detectors._rate_schedule import RateSchedule


@dataclass(frozen=True)
class RunClock:
    """Time at past evaluations, and how fast it will go on.

    Times are sums of learning rates, because what a step changes is about proportional to its rate;
    they are numbers of steps where rates are unknown or all 0.

    Attributes:
        step: step of the last evaluation.
        times: time of each of the last evaluations, shape (evaluations,).
        pace: time of a step to come, where no plan tells it.
        schedule: planned steps; None: unknown, or the run has gone on after their end.
        scale: learning rates of late, as multiples of the planned ones.
    """

    step: int
    times: np.ndarray
    pace: float
    schedule: RateSchedule | None
    scale: float = 1.0

    @classmethod
    def of(cls, history: BehaviorHistory, evaluations: int) -> RunClock:
        """Return the clock of the last evaluations of a history, at least two."""
        steps = np.array(history.steps[-evaluations:], dtype=np.float64)
        sums = np.array(history.rate_sums[-evaluations:], dtype=np.float64)
        plan = history.schedule
        if plan is not None and history.step > plan.first + plan.n_steps:
            plan = None
        if not np.isfinite(sums).all() or not sums[-1] > 0:
            rest = None if plan is None else RateSchedule(plan.first, plan.n_steps)
            return cls(history.step, steps, 1.0, rest)
        gained = float(sums[-1] - sums[-2])
        pace = gained / (steps[-1] - steps[-2]) if gained > 0 else sums[-1] / steps[-1]
        clock = cls(history.step, sums, float(pace), plan)
        planned = 0.0
        if plan is not None and steps[-2] >= plan.first:
            planned = plan.rate_sum(int(steps[-2]), int(steps[-1] - steps[-2]), pace)
        return replace(clock, scale=gained / planned) if planned > 0 and gained > 0 else clock

    def ahead(self, steps: np.ndarray) -> np.ndarray:
        """Return the time that passes in the next steps; after the end of the plan none does."""
        if self.schedule is None:
            return np.asarray(steps, dtype=np.float64) * self.pace
        return self.scale * self.schedule.rate_sums(self.step, steps, self.pace)
