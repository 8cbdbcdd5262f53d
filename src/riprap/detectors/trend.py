"""The trend of the deciding margin, and the time at which it reaches 0. Small arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from riprap.detectors.track import Track, low_margin

Z80 = 1.2816  # standard normal quantile that bounds an 80 % interval


def deciding_margins(track: Track) -> np.ndarray:
    """The margin that decides whether the score is under its floor, at each visit; (visits,)."""
    return np.array([low_margin(margins, track.floor) for margins in track.margins])


def realised_changes(track: Track, values: np.ndarray) -> np.ndarray:
    """Change a step since the start, shape (steps,): between two visits spread evenly."""
    gaps = np.diff(track.steps)
    return np.repeat(np.diff(values) / np.maximum(gaps, 1), gaps)


def shaped_changes(track: Track, values: np.ndarray) -> np.ndarray:
    """As `realised_changes`, but spread over each gap in the shape of the predicted changes r_b.

    The margins say how much was lost between two visits, interference says when.
    """
    changes = realised_changes(track, values)
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


def trend(values: np.ndarray, steps: list[int], changes: np.ndarray, memory: float) -> Trend:
    """The trend after the last visit.

    The change is an exponentially weighted mean of `changes` over `memory` steps, or over the last
    gap between visits if that was longer. The error is their weighted spread; neighbouring steps
    that are alike count as one observation.

    Args:
        values: the deciding margin at each visit, shape (visits,), two at least.
        changes: shape (steps,).
    """
    memory = max(memory, steps[-1] - steps[-2])
    weights = np.exp(-np.arange(len(changes))[::-1] / memory)
    weights /= weights.sum()
    mean = float(weights @ changes)
    residual = changes - mean
    variance = float(weights @ residual**2)
    lagged = float(weights[1:] @ (residual[1:] * residual[:-1])) / variance if variance > 0 else 0.0
    alike = min(max(lagged, 0.0), 0.9)
    effective = max(1.0, (1 - alike) / (1 + alike) / float((weights**2).sum()))
    peak = steps[len(values) - 1 - int(np.argmax(values[::-1]))]
    return Trend(float(values[-1]), mean, float(np.sqrt(variance / effective)), steps[-1] - peak)
