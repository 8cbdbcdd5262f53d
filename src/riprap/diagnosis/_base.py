"""What all diagnoses share: verdicts, intervals, progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats
from torch import nn

from riprap import evaluation as probing
from riprap.behaviors import Behavior

Progress = Callable[[int, int], None]  # (done, in all)


class Verdict(StrEnum):
    """What became of a behaviour whose score fell."""

    ALIGNMENT = "alignment loss"
    KNOWLEDGE = "knowledge loss"
    BOTH = "both"
    INSUFFICIENT = "insufficient evidence"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over independent draws, with its 95 % t-interval; one draw has none.

    Attributes:
        low, high: bounds; NaN where there are fewer than two draws.
    """

    mean: float
    low: float
    high: float
    n: int


def estimate(values: Sequence[float] | np.ndarray) -> Estimate:
    """Mean and 95 % t-interval of draws.

    Args:
        values: at least one, all finite.
    """
    found = np.asarray(values, dtype=np.float64)
    mean, n = float(found.mean()), len(found)
    if n < 2:
        return Estimate(mean, float("nan"), float("nan"), n)
    half = float(stats.t.ppf(0.975, n - 1) * found.std(ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


def score(behavior: Behavior, model: nn.Module) -> float:
    """Share of the behaviour's margins that are above 0, in one pass that leaves no trace."""
    return float((probing.look(behavior, model).margins > 0).mean())
