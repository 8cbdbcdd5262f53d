"""Inner products of samples with each other, of their gradients and of their updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from riprap.linalg import Vector
from riprap.selection._batch_pass import Pass
from riprap.selection._scores import Array


@dataclass
class Grams:
    """Over the n samples of a step.

    Attributes:
        gradients: ⟨∇L_i, ∇L_j⟩, shape (n, n).
        updates: ⟨Δθ_i, Δθ_j⟩, shape (n, n).
        batch: ⟨the mean ∇L, Δθ_i⟩, shape (n,).
    """

    gradients: Array
    updates: Array
    batch: Array


def grams(done: Sequence[Pass], parameters: Sequence[Tensor], scales: Vector) -> Grams:
    """Of what the passes' taps caught, which is w_i ∇L_i.

    Args:
        scales: shapes of the parameters; Δθ_i = scales · ∇L_i, element by element.
    """
    weights = torch.cat([one.weights.double() for one in done]).cpu()
    n = len(weights)
    found = torch.zeros(3, n, n, dtype=torch.float64)
    for place, (parameter, scale) in enumerate(zip(parameters, scales, strict=True)):
        parts = [None if one.catch is None else one.catch.gradients.get(place) for one in done]
        if all(part is None for part in parts):
            continue
        flat = [
            parameter.new_zeros(one.rows, parameter.numel()) if part is None else part.flatten(1)
            for one, part in zip(done, parts, strict=True)
        ]
        own = torch.cat(flat)
        moved = own * scale.flatten().to(own.dtype)
        for at, (a, b) in enumerate(((own, own), (moved, moved), (own, moved))):
            found[at] += (a @ b.T).double().cpu()
    safe = torch.where(weights == 0, 1.0, weights)
    found = found / safe / safe[:, None]
    learned = max(1, int((weights != 0).sum()))
    return Grams(found[0].numpy(), found[1].numpy(), (found[2].sum(0) / learned).numpy())
