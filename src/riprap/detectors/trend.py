"""The trend of a deciding margin, and the time at which it reaches 0. Small arrays only."""

from __future__ import annotations

import numpy as np

from riprap.detectors.track import Track, low_margin
from riprap.evidence import Forecast

Z80 = 1.2816  # standard normal quantile that bounds an 80 % interval


def realised_changes(track: Track) -> np.ndarray:
    """Change of the deciding margin in each step since the start, shape (steps,).

    What was measured between two visits is spread evenly over the steps between them.
    """
    lows = np.array([low_margin(margins, track.floor) for margins in track.margins])
    gaps = np.diff(track.steps)
    return np.repeat(np.diff(lows) / np.maximum(gaps, 1), gaps)


def shaped_changes(track: Track) -> np.ndarray:
    """As `realised_changes`, but spread over each gap in the shape of the predicted changes r_b.

    The margins say how much was lost between two visits, interference says when.
    """
    changes = realised_changes(track)
    predicted = np.array([track.predicted.get(s + 1, np.nan) for s in range(len(changes))])
    for begin, end in zip(track.steps[:-1], track.steps[1:], strict=True):
        shape = predicted[begin:end]
        if len(shape) > 1 and np.isfinite(shape).all():
            changes[begin:end] += shape - shape.mean()
    return changes


def rate(changes: np.ndarray, memory: float) -> tuple[float, float]:
    """Recent change a step and its standard error.

    An exponentially weighted mean over the last `memory` steps or so. The error takes the spread
    of the changes about it, and counts neighbouring steps as one observation where they are alike.

    Args:
        changes: shape (steps,), at least one.
    """
    ages = np.arange(len(changes))[::-1]
    weights = np.exp(-ages / memory)
    weights /= weights.sum()
    mean = float(weights @ changes)
    spread = changes - mean
    variance = float(weights @ spread**2)
    if len(changes) < 3 or variance == 0:
        return mean, abs(mean)
    lagged = float((weights[1:] @ (spread[1:] * spread[:-1])) / variance)
    inflation = (1 + max(lagged, 0.0)) / max(1 - max(lagged, 0.0), 0.1)
    effective = 1 / float((weights**2).sum())
    return mean, float(np.sqrt(variance * inflation / effective))


def time_to_zero(margin: float, mean: float, error: float, horizon: int) -> Forecast:
    """Steps until `margin` reaches 0 at a change a step of mean ± error, normal."""

    def steps(change: float) -> float:
        reached = margin / -change if change < 0 else float("inf")
        return reached if reached <= horizon else float("inf")

    if margin <= 0:
        return Forecast(0.0, 0.0, 0.0, horizon)
    low, high = steps(mean - Z80 * error), steps(mean + Z80 * error)
    return Forecast(steps(mean), low, high, horizon)
