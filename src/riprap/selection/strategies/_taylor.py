"""Greedy choice by a Taylor expansion of the loss to be lowered."""

from __future__ import annotations

import numpy as np

from riprap.selection._scores import Array, Scores
from riprap.selection.strategies._base import Strategy


class Taylor(Strategy):
    """One at a time, the largest gain given those already taken.

    gain(i | S) = −⟨g, Δθ_i⟩ − Σ_{j∈S} ⟨Δθ_i, Δθ_j⟩, where g is the gradient of a validation loss,
    given as the direction "validation"; without one the mean gradient of the batch. Under SGD that
    is η ⟨∇L_i, g⟩ − η² Σ ⟨∇L_i, ∇L_j⟩; under Adam both terms go through the preconditioner.

    Source: GREATS (NeurIPS 2024); simplified: the Hessian is the identity. Without a validation
    loss, which GREATS is about, it is a variant.
    """

    name = "taylor"
    needs = frozenset({"gram"})
    source, verdict = "GREATS, NeurIPS 2024", "simplified"

    def choose(self, scores: Scores, count: int, noise: np.random.Generator) -> Array:
        """See `Strategy.choose`."""
        gram, rate = scores.given("gram"), scores.rate
        moves = rate**2 * gram if scores.moves is None else scores.moves
        # What is along the direction is the update's, and the update goes against the gradient.
        towards = scores.along.get("validation", scores.along.get("batch"))
        gain = rate * gram.mean(1) if towards is None else -towards
        taken: list[int] = []
        for _ in range(min(count, len(scores))):
            left = np.delete(np.arange(len(scores)), taken)
            best = int(left[np.argmax(gain[left])])
            taken.append(best)
            gain = gain - moves[best]
        return np.array(taken, dtype=int)
