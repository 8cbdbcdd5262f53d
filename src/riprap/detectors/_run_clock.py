"""Clock of a run: time measured in learning rates, as far as they are known."""

from __future__ import annotations

from dataclasses import dataclass

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
        times: time of each evaluation, shape (evaluations,).
        pace: time of a step to come, where no plan tells it.
        schedule: planned steps; None: unknown.
    """

    step: int
    times: np.ndarray
    pace: float
    schedule: RateSchedule | None

    @classmethod
    def of(cls, history: BehaviorHistory) -> RunClock:
        """Return the clock after the last evaluation of a history."""
        steps = np.array(history.steps, dtype=np.float64)
        sums = np.array(history.rate_sums, dtype=np.float64)
        plan = history.schedule
        if not np.isfinite(sums).all() or not sums[-1] > 0:
            rest = None if plan is None else RateSchedule(plan.first, plan.n_steps)
            return cls(history.step, steps, 1.0, rest)
        gained, taken = np.diff(sums[-2:]), np.diff(steps[-2:])
        pace = float(gained[0] / taken[0]) if len(taken) and gained[0] > 0 else sums[-1] / steps[-1]
        return cls(history.step, sums, float(pace), plan)

    @property
    def elapsed(self) -> float:
        """Time since the start of the run."""
        return float(self.times[-1])

    def ahead(self, steps: np.ndarray) -> np.ndarray:
        """Return the time that passes in the next steps; after the end of the plan none does."""
        if self.schedule is None:
            return np.asarray(steps, dtype=np.float64) * self.pace
        plan = self.schedule
        return np.array([plan.rate_sum(self.step, float(count), self.pace) for count in steps])

    def to_the_end(self) -> float:
        """Return the time until the end of the plan; without one, as long again as it took so far.

        A run of unknown length is as likely to be in its first half as in its second.
        """
        if self.schedule is None:
            return max(self.elapsed, 0.0)
        return float(self.ahead(np.array([self.schedule.remaining(self.step)]))[0])
