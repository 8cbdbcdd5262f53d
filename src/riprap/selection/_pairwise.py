"""Pairwise inner products of the samples' gradients, and of their updates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riprap.linalg import Vector
from riprap.selection._batch_pass import BatchPass
from riprap.selection._scores import Array


def pairwise_products(
    passes: Sequence[BatchPass], parameters: Sequence[Tensor], scales: Vector
) -> tuple[Array, Array, Array]:
    """Compute the products from the per-sample gradients of the passes, which are w_i ∇L_i.

    Args:
        scales: tensors of the parameters' shapes; Δθ_i = scales · ∇L_i, element by element.

    Returns:
        ⟨∇L_i, ∇L_j⟩ and ⟨Δθ_i, Δθ_j⟩, shape (n, n), and ⟨mean ∇L, Δθ_i⟩, shape (n,).
    """
    weights = torch.cat([batch_pass.weights.double() for batch_pass in passes]).cpu()
    n = len(weights)
    products = torch.zeros(3, n, n, dtype=torch.float64)
    for index, (parameter, scale) in enumerate(zip(parameters, scales, strict=True)):
        samples = [
            one.accumulator.grad_samples(index) if one.accumulator else None for one in passes
        ]
        if all(part is None for part in samples):
            continue
        flat = [
            parameter.new_zeros(one.n_rows, parameter.numel()) if part is None else part.flatten(1)
            for one, part in zip(passes, samples, strict=True)
        ]
        grads = torch.cat(flat)
        updates = grads * scale.flatten().to(grads.dtype)
        for at, (a, b) in enumerate(((grads, grads), (updates, updates), (grads, updates))):
            products[at] += (a @ b.T).double().cpu()
    nonzero = torch.where(weights == 0, 1.0, weights)
    products = products / nonzero / nonzero[:, None]
    n_weighted = max(1, int((weights != 0).sum()))
    batch = products[2].sum(0) / n_weighted
    return products[0].numpy(), products[1].numpy(), batch.numpy()
