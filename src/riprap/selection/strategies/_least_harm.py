"""The samples whose own update is predicted to push protected margins down least."""

from __future__ import annotations

import numpy as np

from riprap.selection._scores import Array, Scores
from riprap.selection.strategies._base import Strategy, smallest, usual_losses


class LeastHarm(Strategy):
    """Of C those of least harm −⟨h_b, Δθ_i⟩; with several behaviours the worst one counts.

    Ours, after ghost inner products (2406.11011) and selection in the optimizer's geometry
    (2604.00001): Δθ_i = −lr · ∇L_i / (√v̂ + ε) under Adam, −lr · ∇L_i before it has a state and
    under other optimizers. Momentum is left out: it is the same for all samples.
    """

    name = "least_harm"
    needs = frozenset({"harm"})

    def choose(self, scores: Scores, count: int, noise: np.random.Generator) -> Array:
        """See `Strategy.choose`."""
        usual = usual_losses(scores)
        return usual[smallest(scores.given("harm")[usual], count)]
