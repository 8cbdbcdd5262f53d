"""Random samples: the control that every other strategy is compared with."""

from __future__ import annotations

import numpy as np

from riprap.selection._scores import Array, Scores
from riprap.selection.strategies._base import Strategy


class Random(Strategy):
    """A uniform choice without replacement (control of 2604.17215; faithful)."""

    name = "random"
    source, verdict = "2604.17215, control", "faithful"

    def choose(self, scores: Scores, count: int, noise: np.random.Generator) -> Array:
        """See `Strategy.choose`."""
        return noise.choice(len(scores), size=min(count, len(scores)), replace=False)
