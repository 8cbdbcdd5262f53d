"""The rows of least risk: away from danger, towards safety."""

from __future__ import annotations

import numpy as np

from riprap.selection._scores import Array, Scores
from riprap.selection.strategies._base import Strategy, smallest


class Risk(Strategy):
    """Least ⟨Δθ_i, danger⟩ − ⟨Δθ_i, safety⟩, both directions of norm 1, given by the user.

    Source: SQSD (2605.04572), a row's risk as the projection of the update that it induces;
    simplified: the update is that of one step, and the projections are weighted alike.
    """

    name = "risk"
    needs = frozenset({"danger", "safety"})
    source, verdict = "SQSD, 2605.04572", "simplified"

    def choose(self, scores: Scores, count: int, noise: np.random.Generator) -> Array:
        """See `Strategy.choose`."""
        return smallest(scores.given("danger") - scores.given("safety"), count)
