"""Least harm: the samples whose own update is predicted to lower protected margins least."""

from __future__ import annotations

import numpy as np

from riprap.selection._scores import Array, Scores
from riprap.selection.strategies._base import Strategy, smallest_indices, within_one_std


class LeastHarm(Strategy):
    """Samples of C with the least harm −⟨h_b, Δθ_i⟩; the worst of several behaviors counts.

    Ours, after ghost inner products (2406.11011) and selection in the optimizer's geometry
    (2604.00001): Δθ_i = −lr · ∇L_i / (√v̂ + ε) under Adam, and −lr · ∇L_i before Adam has a state
    and under other optimizers. Momentum is left out, because it is the same for all samples.
    """

    name = "least_harm"
    needs = frozenset({"harm"})

    def candidates(self, scores: Scores) -> Array:
        """See `Strategy.candidates`."""
        return within_one_std(scores)

    def choose(self, scores: Scores, count: int, rng: np.random.Generator) -> Array:
        """See `Strategy.choose`."""
        candidates = within_one_std(scores)
        return candidates[smallest_indices(scores.require("harm")[candidates], count)]
