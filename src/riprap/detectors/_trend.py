"""The trend of the deciding margin, and the time at which it reaches 0. Small arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from riprap.detectors._history import BehaviorHistory, threshold_margin

Z80 = 1.2816  # standard normal quantile that bounds an 80 % interval


def threshold_margins(track: BehaviorHistory) -> np.ndarray:
    """The margin that decides whether the score is under its floor, at each visit; (visits,)."""
    known = track.threshold_margin_cache  # of earlier visits
    known += [threshold_margin(margins, track.floor) for margins in track.margins[len(known) :]]
    return np.array(known)


def realized_changes(track: BehaviorHistory, values: np.ndarray) -> np.ndarray:
    """Change a step since the start, shape (steps,): between two visits spread evenly."""
    gaps = np.diff(track.steps)
    return np.repeat(np.diff(values) / np.maximum(gaps, 1), gaps)


def shaped_changes(track: BehaviorHistory, values: np.ndarray) -> np.ndarray:
    """As `realised_changes`, but spread over each gap in the shape of the predicted changes r_b.

    The margins say how much was lost between two visits, interference says when.
    """
    changes = realized_changes(track, values)
    predicted = np.array([track.predicted.get(s + 1, np.nan) for s in range(len(changes))])
    for begin, end in zip(track.steps[:-1], track.steps[1:], strict=True):
        shape = predicted[begin:end]
        if len(shape) > 1 and np.isfinite(shape).all():
            changes[begin:end] += shape - shape.mean()
    return changes


@dataclass(frozen=True)
class Trend:
    """Where a margin stands, how it changes a step, and how far that may be trusted.

    Attributes:
        margin: the value now.
        change, error: recent change a step and its standard error.
        age: steps for which it has been falling: since it was last at its highest.
    """

    margin: float
    change: float
    error: float
    age: int

    def steps_to_zero(self, z: float, persistence: float) -> float:
        """Steps until the margin reaches 0; `inf` where it levels off above.

        Args:
            z: how many standard errors to add to the change.
            persistence: the trend fades with time constant persistence × age: a trend is trusted
                about as far ahead as it has been seen. `inf`: it does not fade.
        """
        change = self.change + z * self.error
        if self.margin <= 0:
            return 0.0
        if change >= 0:
            return float("inf")
        straight = self.margin / -change
        span = persistence * max(self.age, 1)
        if not np.isfinite(span):
            return straight
        used = straight / span
        return float("inf") if used >= 1 else float(-span * np.log1p(-used))


def fit_trend(
    values: np.ndarray, steps: list[int], changes: np.ndarray, memory: float, doubt: float
) -> Trend:
    """The trend after the last visit.

    The change now is where a line through the recent changes ends, so that a fall which gathers or
    loses speed is seen as such: weighted least squares, weights fading over `memory` steps, or over
    the last gap between visits if that was longer. Its error takes the scatter about the line,
    where neighbouring steps that are alike count as one observation, and `doubt` times the change
    itself: a trend bends, however even it has been.

    Args:
        values: the deciding margin at each visit, shape (visits,), two at least.
        changes: shape (steps,).
    """
    memory = max(memory, steps[-1] - steps[-2])
    ages = np.arange(len(changes))[::-1].astype(float)
    weights = np.exp(-ages / memory)
    weights /= weights.sum()
    change, error = _fit_line_end(ages, changes, weights)
    peak = steps[len(values) - 1 - int(np.argmax(values[::-1]))]
    error = float(np.hypot(error, doubt * change))
    return Trend(float(values[-1]), change, error, steps[-1] - peak)


def _fit_line_end(ages: np.ndarray, changes: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Value at age 0 of the weighted line through `changes`, and its standard error."""
    mean, middle = float(weights @ changes), float(weights @ ages)
    spread = float(weights @ (ages - middle) ** 2)
    if len(changes) < 3 or spread == 0:
        return mean, abs(mean)
    tilt = float(weights @ ((ages - middle) * changes)) / spread
    residual = changes - (mean + tilt * (ages - middle))
    variance = float(weights @ residual**2)
    if variance == 0:
        return mean - tilt * middle, 0.0
    lagged = float(weights[1:] @ (residual[1:] * residual[:-1])) / variance
    alike = min(max(lagged, 0.0), 0.9)
    effective = max(1.0, (1 - alike) / (1 + alike) / float((weights**2).sum()))
    return mean - tilt * middle, float(np.sqrt(variance / effective * (1 + middle**2 / spread)))
