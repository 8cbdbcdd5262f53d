"""Forecast of a break: margins that go on at the pace of the warm start, in summed rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from riprap.types import Forecast

Array = np.ndarray
DRAWS, SEED = 400, 0
LOW, HIGH = 0.10, 0.90
# Standard deviation of the logarithm of the pace to come over the measured one. The 80 % interval
# is then 0.3 to 3.2 times the median, about as wide as that of `riprap.detectors.ProbeTrend`.
DOUBT = 0.9
OWN = 0.5  # weight of a probe's own trend beside the mean trend, as in `ProbeTrend`
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
        """Return the step of the break with its 80 % interval, and the probability of a break.

        Args:
            change: factor of the mean pace by another mix of rows.
        """
        steps = len(self.schedule)
        if self.broke is not None:
            low, high = self.steps_of(np.array(self.broke))
            planned = float(np.isfinite([low, high]).mean())  # the plan may end before
            return Forecast(float(high), float(low), float(high), steps), planned
        change = float(np.clip(change, -LARGEST_CHANGE, LARGEST_CHANGE))
        slopes = self.slopes + (change - 1) * self.slopes.mean()
        factors = np.exp(DOUBT * np.random.default_rng(SEED).standard_normal(DRAWS))
        times = time_to_floor(self.margins, factors[:, None] * slopes, self.floor)
        breaks = self.steps_of(self.done + times)
        low, median, high = np.quantile(breaks, (LOW, 0.5, HIGH), method="inverted_cdf")
        forecast = Forecast(float(median), float(low), float(high), steps)
        return forecast, float(np.isfinite(breaks).mean())

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
    times = np.asarray(sums) - np.mean(sums)
    slopes = times @ np.asarray(margins) / (times @ times)
    found: Array = slopes.mean() + OWN * (slopes - slopes.mean())
    return found


def time_to_floor(margins: Array, slopes: Array, floor: float) -> Array:
    """Return when the score first falls under its floor if each margin moves along a line.

    Args:
        margins: shape (n_probes,).
        slopes: shape (replicates, n_probes).

    Returns:
        shape (replicates,); `inf`: never; 0: it is under the floor already.
    """
    passes = margins > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(passes == (slopes < 0), -margins / slopes, np.inf)
    times = np.where(np.isfinite(times), np.maximum(times, 0.0), np.inf)
    order = np.argsort(times, axis=1, kind="stable")
    turns = np.where(passes, 1, -1)[order]  # a probe that passes begins to fail, or the other way
    sorted_times = np.take_along_axis(times, order, axis=1)
    failing = (~passes).sum() + np.cumsum(np.where(np.isfinite(sorted_times), turns, 0), axis=1)
    limit = np.floor((1 - floor) * len(margins) + 1e-9)
    broken = (failing > limit) & np.isfinite(sorted_times)
    first = np.where(broken, sorted_times, np.inf).min(axis=1)
    return np.zeros(len(slopes)) if (~passes).sum() > limit else np.asarray(first)


def fewest_rows_for(share: float, falls: Array) -> int | None:
    """Return how many rows, the worst first, do a share of the whole fall; None if nothing falls.

    Args:
        falls: fall of the mean margin by each row, negative where it rises, shape (rows,).
    """
    total = falls.sum()
    if total <= 0:
        return None
    return int(np.searchsorted(np.cumsum(np.sort(falls)[::-1]), share * total) + 1)


def without_rows(weights: Array, rows: Sequence[int] | Array) -> Array:
    """Return the weights with those of some rows set to 0."""
    kept = weights.astype(float).copy()
    kept[np.asarray(rows, dtype=int)] = 0.0
    return kept
