"""The samples that pull least."""

from __future__ import annotations

import numpy as np

from riprap.selection._scores import Array, Scores
from riprap.selection.strategies._base import Strategy, smallest


class Low(Strategy):
    """Smallest G_i = ‖∇L_i‖₂ (control of 2604.17215; faithful)."""

    name = "low"
    needs = frozenset({"norm"})
    source, verdict = "2604.17215, control", "faithful"

    def choose(self, scores: Scores, count: int, noise: np.random.Generator) -> Array:
        """See `Strategy.choose`."""
        return smallest(scores.given("norm"), count)
