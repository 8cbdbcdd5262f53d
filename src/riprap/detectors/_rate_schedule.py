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

    def rate_sums(self, step: int, counts: np.ndarray, pace: float) -> np.ndarray:
        """Return the sums of the learning rates of the next steps; none after the last one.

        Args:
            counts: numbers of steps, whole ones.
            pace: learning rate of a step where the plan has none.
        """
        counts = np.minimum(counts, self.remaining(step))
        if self.sums is None:
            return pace * counts.astype(np.float64)
        place = min(max(step - self.first, 0), self.n_steps)
        return np.asarray(self.sums[place + counts.astype(np.int64)] - self.sums[place])

    def rate_sum(self, step: int, count: int, pace: float) -> float:
        """Return the same of one number of steps."""
        return float(self.rate_sums(step, np.array([count]), pace)[0])
