"""Types that all diagnoses share: verdicts, estimates with intervals, progress callbacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats

Progress = Callable[[int, int], None]  # (done, total)


class Verdict(StrEnum):
    """Outcome of a diagnosis of a behavior whose score dropped.

    Alignment loss is *task alignment loss* (2501.13453): the knowledge is there, but the model
    does not use it. It is not a training loss. Weight damage is a change of the weights that no
    training made: pruning, quantization or noise.
    """

    ALIGNMENT = "alignment loss"
    KNOWLEDGE = "knowledge loss"
    BOTH = "both"
    DAMAGE = "weight damage"
    INSUFFICIENT = "insufficient evidence"


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean over n independent draws, with its 95 % interval.

    Attributes:
        low, high: bounds; NaN for fewer than two draws.
    """

    mean: float
    low: float
    high: float
    n: int


def estimate(values: Sequence[float] | np.ndarray) -> Estimate:
    """Compute the mean of draws and its 95 % t-interval.

    Args:
        values: at least one, all finite.
    """
    draws = np.asarray(values, dtype=np.float64)
    mean, n = float(draws.mean()), len(draws)
    if n < 2:
        return Estimate(mean, float("nan"), float("nan"), n)
    half = float(stats.t.ppf(0.975, n - 1) * draws.std(ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)
