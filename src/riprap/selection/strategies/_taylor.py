"""Taylor: greedy choice by a Taylor expansion of a validation loss."""

from __future__ import annotations

import numpy as np

from riprap.selection._scores import Array, Scores
from riprap.selection.strategies._base import Strategy


class Taylor(Strategy):
    """Greedy choice: at each turn the sample of largest gain, given the samples already chosen.

    gain(i | S) = −⟨g, Δθ_i⟩ − Σ_{j∈S} ⟨Δθ_i, Δθ_j⟩, where g is the gradient of a validation loss,
    given as the direction "validation"; without it, the mean gradient of the batch. Under SGD this
    is η ⟨∇L_i, g⟩ − η² Σ ⟨∇L_i, ∇L_j⟩; under Adam both terms go through the preconditioner.

    Source: GREATS (NeurIPS 2024); simplified: the Hessian is the identity. Without a validation
    loss, on which GREATS is based, it is a variant.
    """

    name = "taylor"
    needs = frozenset({"gram"})
    source, fidelity = "GREATS, NeurIPS 2024", "simplified"

    def choose(self, scores: Scores, count: int, rng: np.random.Generator) -> Array:
        """See `Strategy.choose`."""
        gram, lr = scores.require("gram"), scores.lr
        update_gram = lr**2 * gram if scores.update_gram is None else scores.update_gram
        # Directional scores are those of the update, which goes against the gradient.
        toward_target = scores.directional.get("validation", scores.directional.get("batch"))
        gain = lr * gram.mean(1) if toward_target is None else -toward_target
        chosen: list[int] = []
        for _ in range(min(count, len(scores))):
            remaining = np.delete(np.arange(len(scores)), chosen)
            best = int(remaining[np.argmax(gain[remaining])])
            chosen.append(best)
            gain = gain - update_gram[best]
        return np.array(chosen, dtype=int)
