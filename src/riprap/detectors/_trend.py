"""Trend of the threshold margin, and the time at which it reaches 0."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from riprap.detectors._history import BehaviorHistory

Z80 = 1.2816  # standard normal quantile that bounds an 80 % interval
REACH = 60  # memories after which a change has no weight: exp(−60) = 9e-27


def fading_memory(history: BehaviorHistory, memory: float) -> float:
    """Return the time constant of the weights: `memory` steps, or the last gap if it is longer."""
    return max(memory, history.steps[-1] - history.steps[-2])


def recent_threshold_margins(history: BehaviorHistory, memory: float) -> np.ndarray:
    """Return the threshold margins of the evaluations that have weight in a trend; (recent,).

    Earlier ones change nothing: a change that is older than 60 time constants would have to be
    millions of times larger than the recent ones to move the ninth digit of a forecast.

    Args:
        memory: time constant of the weights, in steps.
    """
    begin = bisect_right(history.steps, history.step - REACH * memory) - 1
    return np.array([low for _, low in history.series("margin_low")[max(begin, 0) :]])


def realized_changes(history: BehaviorHistory, threshold_margins: np.ndarray) -> np.ndarray:
    """Compute the change per step, spread evenly between evaluations; shape (steps,).

    Args:
        threshold_margins: of the latest evaluations, at least one.
    """
    gaps = np.diff(history.steps[-len(threshold_margins) :])
    return np.repeat(np.diff(threshold_margins) / np.maximum(gaps, 1), gaps)


def shaped_changes(history: BehaviorHistory, threshold_margins: np.ndarray) -> np.ndarray:
    """Compute `realized_changes`, but spread in the shape of the predicted changes r_b.

    The margins tell how much was lost between two probe evaluations, and interference when.
    """
    changes = realized_changes(history, threshold_margins)
    evaluated = history.steps[-len(threshold_margins) :]
    interference = interference_per_step(history, evaluated)
    unknown = np.concatenate([[0], np.cumsum(np.isnan(interference))]).tolist()
    for begin, end in pairwise(step - evaluated[0] for step in evaluated):
        if end - begin > 1 and unknown[begin] == unknown[end]:
            shape = interference[begin:end]
            changes[begin:end] += shape - shape.sum() / len(shape)
    return changes


def interference_per_step(history: BehaviorHistory, evaluated: list[int]) -> np.ndarray:
    """Spread each entry of interference evenly over its steps; shape (steps,), NaN: unknown.

    An entry covers the steps since the entry before, or since the last probe evaluation before it:
    there, updates are counted anew.

    Args:
        evaluated: steps of the latest evaluations; the result begins after the first of them.
    """
    first, last = evaluated[0], evaluated[-1]
    steps = np.arange(first + 1, last + 1)
    entry_at = history.interference.get
    entries = np.array([entry_at(step, math.inf) for step in range(first + 1, last + 1)])
    ends, values = steps[~np.isinf(entries)], entries[~np.isinf(entries)]
    if not len(ends):
        return np.full(len(steps), np.nan)
    evaluation = np.array(evaluated)[np.searchsorted(evaluated, ends) - 1]  # before each entry
    begins = np.maximum(evaluation, np.concatenate([[first], ends[:-1]]))
    rates = values / (ends - begins)
    entry = np.minimum(np.searchsorted(ends, steps), len(ends) - 1)  # the one that covers a step
    return np.where((begins[entry] < steps) & (steps <= ends[entry]), rates[entry], np.nan)


@dataclass(frozen=True)
class Trend:
    """Current value of a margin, its change per step, and the duration of the fall.

    Attributes:
        margin: current value.
        change, standard_error: recent change per step and its standard error.
        age: number of steps since the margin was last at its maximum.
    """

    margin: float
    change: float
    standard_error: float
    age: int

    def steps_to_zero(self, z: float, persistence: float) -> float:
        """Compute the number of steps until the margin reaches 0; `inf` if it levels off above 0.

        Args:
            z: number of standard errors to add to the change.
            persistence: the trend fades with the time constant persistence × age, so that it is
                extrapolated about as far as it has been observed. `inf`: it does not fade.
        """
        change = self.change + z * self.standard_error
        if self.margin <= 0:
            return 0.0
        if change >= 0:
            return float("inf")
        linear_steps = self.margin / -change
        time_constant = persistence * max(self.age, 1)
        if not np.isfinite(time_constant):
            return linear_steps
        ratio = linear_steps / time_constant
        return float("inf") if ratio >= 1 else float(-time_constant * np.log1p(-ratio))


def fit_trend(history: BehaviorHistory, changes: np.ndarray, memory: float, doubt: float) -> Trend:
    """Fit the trend after the last probe evaluation.

    The current change is the end of a line through the recent changes, so that accelerating and
    decelerating falls are recognized: weighted least squares, with weights that fade over `memory`
    steps. The error combines the scatter about the line, where similar neighboring steps count as
    one observation, and `doubt` times the change itself, because even a smooth trend may bend.

    Args:
        changes: of the latest steps, shape (steps,).
        memory: time constant of the weights, in steps.
    """
    ages = np.arange(len(changes))[::-1].astype(float)
    weights = np.exp(-ages / memory)
    weights /= weights.sum()
    change, fit_error = _fit_line_end(ages, changes, weights)
    standard_error = float(np.hypot(fit_error, doubt * change))
    return Trend(history.threshold_margin, change, standard_error, history.steps_since_peak)


def _fit_line_end(
    ages: np.ndarray, changes: np.ndarray, weights: np.ndarray
) -> tuple[float, float]:
    """Fit a weighted line through `changes`; return its value at age 0 and the standard error."""
    mean, mean_age = float(weights @ changes), float(weights @ ages)
    age_variance = float(weights @ (ages - mean_age) ** 2)
    if len(changes) < 3 or age_variance == 0:
        return mean, abs(mean)
    slope = float(weights @ ((ages - mean_age) * changes)) / age_variance
    residual = changes - (mean + slope * (ages - mean_age))
    variance = float(weights @ residual**2)
    if variance == 0:
        return mean - slope * mean_age, 0.0
    lagged = float(weights[1:] @ (residual[1:] * residual[:-1])) / variance
    correlation = min(max(lagged, 0.0), 0.9)
    effective_count = max(1.0, (1 - correlation) / (1 + correlation) / float((weights**2).sum()))
    error = np.sqrt(variance / effective_count * (1 + mean_age**2 / age_variance))
    return mean - slope * mean_age, float(error)
