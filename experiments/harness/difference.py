"""Difference of two methods over paired runs, and what it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """Mean difference of two methods over paired runs, with its 95 % interval by Student's t.

    Attributes:
        n: pairs that are known; with fewer than two there is no interval.
    """

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Difference:
        """Return the difference of paired values."""
        known = np.array([value for value in values if not math.isnan(value)])
        if len(known) < 2:
            mean = float(known[0]) if len(known) else math.nan
            return cls(mean, -math.inf, math.inf, len(known))
        half = stats.t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known))
        mean = float(known.mean())
        return cls(mean, mean - float(half), mean + float(half), len(known))

    def verdict(self, least: float) -> str:
        """Return what it says about an effect of at least `least`."""
        if self.high < 0 and self.mean <= -least:
            return "lower"
        if self.low > 0 and self.mean >= least:
            return "higher"
        if -least < self.low and self.high < least:
            return "no difference"
        return "cannot be told"
