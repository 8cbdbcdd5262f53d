"""Trivial alert rules, each with one threshold: what a better rule must beat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from riprap.detectors import BehaviorHistory

Statistic = Callable[[BehaviorHistory], float]  # larger: nearer to a break


def lost_threshold_margin(history: BehaviorHistory) -> float:
    """Return the lost share of the threshold margin at the start."""
    lows = history.series("margin_low")
    return 1 - lows[-1][1] / max(lows[0][1], 1e-12)


def lost_mean_margin(history: BehaviorHistory) -> float:
    """Return the lost share of the mean margin at the start."""
    means = history.series("margin")
    return 1 - means[-1][1] / max(means[0][1], 1e-12)


def slope(history: BehaviorHistory, evaluations: int = 4) -> float:
    """Return the fall of the threshold margin a step over the last evaluations, as a share of
    the threshold margin at the start."""
    lows = history.series("margin_low")
    recent = lows[-evaluations:]
    if len(recent) < 2:
        return 0.0
    steps, values = np.array(recent, dtype=float).T
    fall: float = -np.polyfit(steps, values, 1)[0]
    return fall / max(lows[0][1], 1e-12)


def line(history: BehaviorHistory, evaluations: int = 4) -> float:
    """Return minus the steps until a line through the last evaluations reaches 0."""
    lows = history.series("margin_low")
    fall = slope(history, evaluations) * max(lows[0][1], 1e-12)
    return -lows[-1][1] / fall if fall > 0 else -1e9


RIVALS: dict[str, Statistic] = {
    "lost threshold margin": lost_threshold_margin,
    "lost mean margin": lost_mean_margin,
    "slope of the last four": slope,
    "line through the last four": line,
}
