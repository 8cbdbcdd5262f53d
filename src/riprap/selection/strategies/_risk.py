"""Risk: the samples of least risk, away from danger and toward safety."""

from __future__ import annotations

import numpy as np

from riprap.selection._scores import Array, Scores
from riprap.selection.strategies._base import Strategy, smallest_indices


class Risk(Strategy):
    """Least ⟨Δθ_i, danger⟩ − ⟨Δθ_i, safety⟩, for two directions of norm 1 that the user gives.

    Source: SQSD (2605.04572), a row's risk as the projection of the update that it induces;
    simplified: the update is that of one step, and the projections have equal weights.
    """

    name = "risk"
    needs = frozenset({"danger", "safety"})
    source, fidelity = "SQSD, 2605.04572", "simplified"

    def choose(self, scores: Scores, count: int, rng: np.random.Generator) -> Array:
        """See `Strategy.choose`."""
        return smallest_indices(scores.require("danger") - scores.require("safety"), count)
