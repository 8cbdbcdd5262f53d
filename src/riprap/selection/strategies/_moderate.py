"""Moderate: samples of usual loss with neither small nor large gradients."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from riprap.selection._scores import Array, Scores
from riprap.selection.strategies._base import (
    MODERATE_SOURCE,
    Strategy,
    smallest_indices,
    within_one_std,
)


class Moderate(Strategy):
    """Samples of C = ``{i : |L_i − mean| ≤ std}`` with G_i nearest to the median of C.

    Source: 2604.17215, algorithm 1; faithful, with exact norms over the trainable parameters.

    Attributes:
        score_name: the score that is compared with its median.
    """

    name = "moderate"
    needs = frozenset({"norm"})
    source, fidelity = MODERATE_SOURCE, "faithful"
    score_name: ClassVar[str] = "norm"

    def candidates(self, scores: Scores) -> Array:
        """See `Strategy.candidates`."""
        return within_one_std(scores)

    def choose(self, scores: Scores, count: int, rng: np.random.Generator) -> Array:
        """See `Strategy.choose`."""
        candidates = within_one_std(scores)
        values = scores.require(self.score_name)[candidates]
        return candidates[smallest_indices(np.abs(values - np.median(values)), count)]
