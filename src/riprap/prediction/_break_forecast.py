"""Forecast of a break: margins that move on as they do, in units of the summed learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from riprap.types import Forecast

Array = np.ndarray
REPLICATES, SEED = 400, 0
LOW, HIGH = 0.10, 0.90
# Standard deviation of the logarithm of the rate at which margins will fall, beside what the rows
# and the checkpoints show: curvature, and weights that the optimizer will scale otherwise.
DOUBT = 0.5


@dataclass(frozen=True)
class Course:
    """Course of a behavior's margins at the end of the warm start.

    All rates are those of one step at full rate.

    Attributes:
        margins: at the end of the warm start, shape (n_probes,).
        slopes: change of each margin, at each checkpoint, shape (checkpoints, n_probes).
        changes: change of the mean margin by each row, at each checkpoint, as if a step learned
            from this row alone, shape (checkpoints, rows).
        weights: share of each row in the loss, shape (rows,).
        floor: score under which the behavior is broken.
        schedule: planned rate of each step as a share of the largest, shape (steps,).
        done: sum of these shares in the warm start.
    """

    margins: Array
    slopes: Array
    changes: Array
    weights: Array
    floor: float
    schedule: Array
    done: float

    def drift(self, weights: Array | None = None) -> Array:
        """Return the change of the mean margin by all rows, shape (checkpoints,)."""
        used = self.weights if weights is None else weights
        total: float = used.sum()
        drift: Array = self.changes @ used / total if total > 0 else self.changes[:, 0] * 0
        return drift

    def breaks(self, weights: Array | None = None, kept: float = 1.0, added: float = 0.0) -> Array:
        """Draw steps at which the behavior breaks, shape (replicates,); `inf`: not in this run.

        A replicate has rows drawn with replacement, one of the checkpoints, and a common factor of
        all changes with the standard deviation `DOUBT` of its logarithm.

        Args:
            weights: other weights of the rows, such as 0 for rows that are dropped.
            kept: share of each step that still learns from the rows.
            added: change of the mean margin by the rest of the step.
        """
        rng, n = np.random.default_rng(SEED), len(self.weights)
        used = self.weights if weights is None else weights
        counts = rng.multinomial(n, np.full(n, 1 / n), REPLICATES) * used
        at = rng.integers(len(self.slopes), size=REPLICATES)
        factors = np.exp(DOUBT * rng.standard_normal(REPLICATES))
        totals = np.maximum(counts.sum(1), 1e-300)
        drawn = (counts * self.changes[at]).sum(1) / totals
        shift = kept * drawn + added - self.drift()[at]
        slopes = factors[:, None] * (self.slopes[at] + shift[:, None])
        return self.steps_of(self.done + time_to_floor(self.margins, slopes, self.floor))

    def steps_of(self, sums: Array) -> Array:
        """Return the steps by which the schedule has reached some sums of its rates."""
        reached = np.cumsum(self.schedule)
        steps = np.searchsorted(reached, sums - 1e-9) + 1.0
        return np.where(steps > len(reached), np.inf, steps)


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


def as_forecast(breaks: Array, steps: int) -> Forecast:
    """Return median and 80 % interval of drawn breaks, in steps from the start of training."""
    low, median, high = np.quantile(breaks, (LOW, 0.5, HIGH), method="inverted_cdf")
    return Forecast(float(median), float(low), float(high), steps)


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
