"""Pairwise inner products of the samples' gradients, and of their updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from riprap.linalg import Vector
from riprap.selection._batch_pass import BatchPass
from riprap.selection._scores import Array


@dataclass
class PairwiseProducts:
    """Inner products over the n samples of a step.

    Attributes:
        gradients: ⟨∇L_i, ∇L_j⟩, shape (n, n).
        updates: ⟨Δθ_i, Δθ_j⟩, shape (n, n).
        batch: ⟨mean ∇L, Δθ_i⟩, shape (n,).
    """

    gradients: Array
    updates: Array
    batch: Array


def pairwise_products(
    passes: Sequence[BatchPass], parameters: Sequence[Tensor], scales: Vector
) -> PairwiseProducts:
    """Compute the products from the per-sample gradients of the passes, which are w_i ∇L_i.

    Args:
        scales: tensors of the parameters' shapes; Δθ_i = scales · ∇L_i, element by element.
    """
    weights = torch.cat([batch_pass.weights.double() for batch_pass in passes]).cpu()
    n = len(weights)
    products = torch.zeros(3, n, n, dtype=torch.float64)
    for index, (parameter, scale) in enumerate(zip(parameters, scales, strict=True)):
        parts = [
            None
            if batch_pass.accumulator is None
            else batch_pass.accumulator.grad_samples.get(index)
            for batch_pass in passes
        ]
        if all(part is None for part in parts):
            continue
        flat = [
            parameter.new_zeros(batch_pass.n_rows, parameter.numel())
            if part is None
            else part.flatten(1)
            for batch_pass, part in zip(passes, parts, strict=True)
        ]
        grads = torch.cat(flat)
        updates = grads * scale.flatten().to(grads.dtype)
        for at, (a, b) in enumerate(((grads, grads), (updates, updates), (grads, updates))):
            products[at] += (a @ b.T).double().cpu()
    nonzero = torch.where(weights == 0, 1.0, weights)
    products = products / nonzero / nonzero[:, None]
    n_weighted = max(1, int((weights != 0).sum()))
    batch = products[2].sum(0) / n_weighted
    return PairwiseProducts(products[0].numpy(), products[1].numpy(), batch.numpy())
