"""Random samples: the control for every other strategy."""

from __future__ import annotations

import numpy as np

from riprap.selection._scores import Array, Scores
from riprap.selection.strategies._base import Strategy


class Random(Strategy):
    """Uniform choice without replacement (control of 2604.17215; faithful)."""

    name = "random"
    source, fidelity = "2604.17215, control", "faithful"

    def choose(self, scores: Scores, count: int, rng: np.random.Generator) -> Array:
        """See `Strategy.choose`."""
        return rng.choice(len(scores), size=min(count, len(scores)), replace=False)
