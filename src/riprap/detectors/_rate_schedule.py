"""Planned learning rates of a run: how far it still goes, measured in learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_SUMS = 2000  # of a plan that are stored; between them lies a line


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

    @classmethod
    def from_facts(cls, first: int, facts: Mapping[str, Any]) -> RateSchedule:
        """Return the plan of which `facts` told.

        Raises:
            LookupError, TypeError, ValueError: the facts are malformed.
        """
        n_steps, places, known = facts["steps"], facts.get("places"), facts.get("sums")
        if places is None or known is None:  # also a record from before the sums were written
            return cls(first, int(n_steps))
        sums = np.interp(np.arange(n_steps + 1), places, known)
        return cls(first, int(n_steps), np.asarray(sums, dtype=np.float64))

    def facts(self) -> dict[str, Any]:
        """Return the plan as plain values: the sums, at most `MAX_SUMS` of them."""
        if self.sums is None:
            return {"steps": self.n_steps, "rate_sum": None}
        count = min(self.n_steps, MAX_SUMS) + 1
        places = np.unique(np.linspace(0, self.n_steps, count).round().astype(int))
        return {
            "steps": self.n_steps,
            "rate_sum": float(self.sums[-1]),
            "places": places.tolist(),
            "sums": self.sums[places].tolist(),
        }

    def ends_as(self, later: RateSchedule) -> bool:
        """Return whether a plan that begins later is the rest of this one, up to rounding."""
        skipped = later.first - self.first
        if skipped < 0 or self.n_steps - skipped != later.n_steps:
            return False
        if self.sums is None or later.sums is None:
            return self.sums is later.sums
        rest = self.sums[skipped:] - self.sums[skipped]
        return bool(np.allclose(rest, later.sums, rtol=1e-6, atol=0.0))

    def remaining(self, step: int) -> int:
        """Return the number of planned steps after `step`."""
        return max(self.first + self.n_steps - step, 0)

    def rates_around(self, step: int, reach: int = 0) -> np.ndarray:
        """Return the learning rates that are planned around a step; empty: unknown.

        Args:
            step: number of the step; the first of the plan is `first` + 1.
            reach: number of steps before and after it. It is wider in a long plan that was
                restored from facts, where single rates are rounded.
        """
        if self.sums is None or not self.first < step <= self.first + self.n_steps:
            return np.empty(0)
        place, reach = step - self.first - 1, reach + self.n_steps // MAX_SUMS
        return np.asarray(np.diff(self.sums[max(place - reach, 0) : place + reach + 2]))

    def rate(self, step: int) -> float:
        """Return the learning rate that is planned for a step; NaN: unknown."""
        if self.sums is None or not self.first < step <= self.first + self.n_steps:
            return math.nan
        return float(self.sums[step - self.first] - self.sums[step - self.first - 1])

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
