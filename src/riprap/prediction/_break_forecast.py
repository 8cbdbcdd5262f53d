"""Forecast of a break: margins that go on at the pace of the warm start, in summed rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from riprap.detectors import fitted_trends, time_to_floor
from riprap.types import Forecast

Array = np.ndarray
LOW, HIGH = 0.10, 0.90
# Chosen on recorded runs by a declared rule (results/onset/preflight.md). Most margins lose pace:
# the pace to come is the measured one times a factor whose logarithm is normal.
OWN = 0.25  # weight of a probe's own trend beside the mean trend
PACE = 0.4  # median of the factor
DOUBT = 2.0  # standard deviation of its logarithm
LARGEST_CHANGE = 2.0  # of the pace, by another mix of rows; a larger one is no longer first order


@dataclass(frozen=True)
class Course:
    """Course of a behavior's margins at the end of the warm start.

    Attributes:
        margins: at the end of the warm start, shape (n_probes,).
        slopes: change of each margin by one step at full rate, shape (n_probes,).
        floor: score under which the behavior is broken.
        schedule: planned rate of each step as a share of the largest, shape (steps,).
        done: sum of these shares in the warm start.
        broke: sums before and at the evaluation of the warm start that found the behavior broken;
            None: it was never found so.
    """

    margins: Array
    slopes: Array
    floor: float
    schedule: Array
    done: float
    broke: tuple[float, float] | None = None

    def forecast(self, change: float = 1.0) -> tuple[Forecast, float]:
        """Return when the behavior breaks, and the probability of a break in the planned steps.

        The forecast is for the case that it breaks in them: median and 80 % interval of the step.

        Args:
            change: factor of the mean pace by another mix of rows.
        """
        steps = len(self.schedule)
        if self.broke is not None:
            low, high = self.steps_of(np.array(self.broke))
            planned = float(np.isfinite([low, high]).mean())  # the plan may end before
            return Forecast(float(high), float(low), float(high), steps), planned
        sums = self.done + self.times_of((LOW, 0.5, HIGH), change)
        low, median, high = self.steps_of(sums).tolist()
        return Forecast(median, low, high, steps), self.probability(change)

    def probability(self, change: float = 1.0) -> float:
        """Return the probability that the behavior breaks in the rest of the planned steps."""
        time = self._time_along_lines(change)
        left = max(0.0, float(np.sum(self.schedule)) - self.done)
        if time in (0.0, np.inf) or not left:
            return float(time == 0)
        return float(ndtr(np.log(PACE * left / time) / DOUBT))

    def times_of(self, shares: Sequence[float], change: float = 1.0) -> Array:
        """Return the sums of rates, after the warm start, by which shares of the breaks came.

        These are quantiles of the breaks in the planned steps; `inf`: there are none.
        """
        chance = self.probability(change)
        if not chance:
            return np.full(len(shares), np.inf)
        time = self._time_along_lines(change) / PACE
        return np.asarray(time * np.exp(DOUBT * ndtri(chance * np.asarray(shares))))

    def _time_along_lines(self, change: float) -> float:
        change = float(np.clip(change, -LARGEST_CHANGE, LARGEST_CHANGE))
        slopes = self.slopes + (change - 1) * self.slopes.mean()
        return time_to_floor(self.margins, slopes, self.floor)

    def steps_of(self, sums: Array) -> Array:
        """Return the steps by which the schedule has reached some sums of its rates."""
        reached = np.cumsum(self.schedule)
        steps = np.searchsorted(reached, sums - 1e-9) + 1.0
        return np.where(steps > len(reached), np.inf, steps)


def measured_slopes(sums: Sequence[float], margins: Sequence[Array]) -> Array:
    """Fit a line through the margins of each probe, drawn towards the mean line.

    Args:
        sums: sum of the rates at each evaluation, shape (evaluations,).
        margins: at each evaluation, shape (n_probes,).

    Returns:
        change by one step at full rate, shape (n_probes,).
    """
    return fitted_trends(np.asarray(sums), np.asarray(margins), OWN)


def without_rows(weights: Array, rows: Sequence[int] | Array) -> Array:
    """Return the weights with those of some rows set to 0."""
    kept = weights.astype(float).copy()
    kept[np.asarray(rows, dtype=int)] = 0.0
    return kept
