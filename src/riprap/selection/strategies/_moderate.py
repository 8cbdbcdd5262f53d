"""Samples of usual loss whose gradient is neither small nor large."""

from __future__ import annotations

import numpy as np

from riprap.selection._scores import Array, Scores
from riprap.selection.strategies._base import MODERATE_SOURCE, Strategy, smallest, usual_losses


class Moderate(Strategy):
    """Of C = {i : |L_i − mean| ≤ std} those whose G_i is nearest the median of C.

    Source: 2604.17215, algorithm 1; faithful, with exact norms over the trainable parameters.
    """

    name = "moderate"
    needs = frozenset({"norm"})
    source, verdict = MODERATE_SOURCE, "faithful"
    by = "norm"

    def choose(self, scores: Scores, count: int, noise: np.random.Generator) -> Array:
        """See `Strategy.choose`."""
        usual = usual_losses(scores)
        values = scores.given(self.by)[usual]
        return usual[smallest(np.abs(values - np.median(values)), count)]
