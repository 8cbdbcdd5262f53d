"""Planned learning rates of a run: how far it still goes, measured in learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RateSchedule:
    """Planned steps of a run, and their learning rates where they are known.

    Attributes:
        first: step after which the plan begins.
        n_steps: number of planned steps after it.
        sums: sum of the learning rates of the first k planned steps, for k from 0 to `n_steps`,
            shape (n_steps + 1,); None: unknown.
    """

    first: int
    n_steps: int
    sums: np.ndarray | None = None

    @classmethod
    def of_rates(cls, first: int, rates: Sequence[float]) -> RateSchedule:
        """Return the plan with the learning rates of all its steps."""
        sums = np.concatenate([[0.0], np.cumsum(np.asarray(rates, dtype=np.float64))])
        return cls(first, len(rates), sums)

    def remaining(self, step: int) -> int:
        """Return the number of planned steps after `step`."""
        return max(self.first + self.n_steps - step, 0)

    def rate_sum(self, step: int, count: float, pace: float) -> float:
        """Return the sum of the learning rates of the next `count` steps; none after the last one.

        Args:
            pace: learning rate of a step where the plan has none.
        """
        count = min(count, self.remaining(step))
        if self.sums is None:
            return pace * count
        place = step - self.first
        low, high = np.interp([place, place + count], np.arange(len(self.sums)), self.sums)
        return float(high - low)

    def steps_until(self, step: int, amount: float, pace: float) -> float:
        """Return the number of steps after which the learning rates sum up to `amount`.

        `inf`: not in the planned steps.
        """
        if amount <= 0:
            return 0.0
        left = self.remaining(step)
        if self.sums is None:
            steps = amount / pace if pace > 0 else np.inf
            return float(steps) if steps <= left else float("inf")
        if not left or amount > self.rate_sum(step, left, pace):
            return float("inf")
        place = step - self.first
        target = self.sums[place] + amount
        at = max(int(np.searchsorted(self.sums, target)), place + 1)
        gained = self.sums[at] - self.sums[at - 1]
        part = (target - self.sums[at - 1]) / gained if gained > 0 else 1.0
        return float(at - 1 + part - place)
