"""Greedy choice by a Taylor expansion of the loss to be lowered."""

from __future__ import annotations

import numpy as np

from riprap.selection.scores import Array, Scores
from riprap.selection.strategies.base import Strategy


class Taylor(Strategy):
    """One at a time, the largest gain given those already taken.

    gain(i | S) = η ⟨∇L_i, g⟩ − η² Σ_{j∈S} ⟨∇L_i, ∇L_j⟩, where g is the gradient of a validation
    loss, given as the direction "validation"; without one the mean gradient of the batch.

    Source: GREATS (NeurIPS 2024); simplified: the Hessian is the identity.
    """

    name = "taylor"
    needs = frozenset({"gram"})
    source, verdict = "GREATS, NeurIPS 2024", "simplified"

    def choose(self, scores: Scores, count: int, noise: np.random.Generator) -> Array:
        """See `Strategy.choose`."""
        gram, rate = scores.given("gram"), scores.rate
        # What is along the direction is the update's, and the update goes against the gradient.
        towards = scores.along.get("validation")
        gain = rate * gram.mean(1) if towards is None else -towards
        taken: list[int] = []
        for _ in range(min(count, len(scores))):
            left = np.delete(np.arange(len(scores)), taken)
            best = int(left[np.argmax(gain[left])])
            taken.append(best)
            gain = gain - rate**2 * gram[best]
        return np.array(taken, dtype=int)
