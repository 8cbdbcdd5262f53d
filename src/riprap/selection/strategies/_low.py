"""Low: the samples with the smallest gradients."""

from __future__ import annotations

import numpy as np

from riprap.selection._scores import Array, Scores
from riprap.selection.strategies._base import Strategy, smallest_indices


class Low(Strategy):
    """Smallest G_i = ‖∇L_i‖₂ (control of 2604.17215; faithful)."""

    name = "low"
    needs = frozenset({"norm"})
    source, fidelity = "2604.17215, control", "faithful"

    def choose(self, scores: Scores, count: int, rng: np.random.Generator) -> Array:
        """See `Strategy.choose`."""
        return smallest_indices(scores.require("norm"), count)
