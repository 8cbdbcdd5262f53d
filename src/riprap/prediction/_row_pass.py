"""One pass over the rows: products of each row's gradient with directions, and their mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from riprap.errors import ConfigError
from riprap.evaluation import to_device
from riprap.linalg import Vector, add, norm
from riprap.prediction._training import LossFn
from riprap.selection import compute_grad_samples, forward_args, row_losses, without_labels

Array = np.ndarray


@dataclass
class RowPass:
    """What one pass over the rows has computed.

    Attributes:
        products: ⟨direction, ∇L_i⟩, shape (directions, rows).
        loss: mean loss L_i of each row over its own tokens, shape (rows,).
        weights: tokens from which each row teaches; 1 with losses of your own; shape (rows,).
        norm: ‖∇L_i‖, shape (rows,).
        mean_gradient: gradient of the loss over all rows, by these weights.
    """

    products: Array
    loss: Array
    weights: Array
    norm: Array
    mean_gradient: Vector

    def step_gradient_norm(self, rows_per_step: int) -> float:
        """Return the root mean square of the gradient's norm in a step of so many rows."""
        mean = float(norm(self.mean_gradient)) ** 2
        spread = max(0.0, float(np.average(self.norm**2, weights=self.weights)) - mean)
        return math.sqrt(mean + spread / rows_per_step)


def summed_losses(model: nn.Module, batch: Any, loss: LossFn | None) -> tuple[Tensor, Tensor]:
    """Compute each row's loss summed over its tokens, and the number of tokens, shapes (rows,)."""
    if loss is not None:
        values = loss(model, batch)
        return values, torch.ones_like(values)
    if not isinstance(batch, Mapping) or "labels" not in batch:
        raise ConfigError(
            "the loss of a row is not known: give batches as mappings of the model's arguments "
            "with `labels`, or loss=, a function (model, batch) -> each row's loss"
        )
    args, named = without_labels(forward_args(batch))
    found = row_losses(model(*args, **named), batch)
    return found.values * found.n_tokens, found.n_tokens


def pass_over_rows(
    model: nn.Module,
    batches: Sequence[Any],
    directions: Sequence[Vector],
    loss: LossFn | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RowPass:
    """Compute the products of all rows, on each rank those of its share of the batches."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if _several_ranks() else (0, 1)
    own: dict[int, tuple[Array, ...]] = {}
    total: Vector | None = None
    for at in range(rank, len(batches), world):
        arrays, gradient = score_batch(model, batches[at], directions, loss)
        own[at] = arrays
        total = gradient if total is None else add(total, gradient)
        progress(min(at + world, len(batches)), len(batches))
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters] if total is None else total
    if world > 1:
        own, total = _gather(own, total, world)
    parts = [own[at] for at in sorted(own)]
    products, sums, weights, norms = (np.concatenate(part, -1) for part in zip(*parts, strict=True))
    counted = np.where(weights > 0, weights, 1.0)
    mean = [part / float(weights.sum()) for part in total]
    return RowPass(products / counted, sums / counted, weights, norms / counted, mean)


def score_batch(
    model: nn.Module, batch: Any, directions: Sequence[Vector], loss: LossFn | None
) -> tuple[tuple[Array, ...], Vector]:
    """Return products, losses, tokens and norms of a batch, and the sum of its gradients.

    All are those of losses summed over each row's tokens.
    """
    tokens: list[Tensor] = []

    def own_losses(model: nn.Module, batch: Any) -> Tensor:
        values, counts = summed_losses(model, batch, loss)
        tokens.append(counts)
        return values

    batch = to_device(batch, next(model.parameters()).device)
    values, found = compute_grad_samples(model, batch, own_losses, True, list(directions))
    rows = list(range(found.rows))
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = [found.take_sum(index, rows) for index in range(len(parameters))]
    gradient: Vector = [
        torch.zeros_like(parameter) if part is None else part.to(parameter.dtype)
        for part, parameter in zip(sums, parameters, strict=True)
    ]
    products = torch.as_tensor(found.dot_products).double().cpu().numpy()
    if not directions:
        products = np.zeros((0, found.rows))
    norms = torch.as_tensor(found.squared_norms).double().clamp(min=0).sqrt()
    arrays = (products, *(_numpy(part) for part in (values, tokens[0], norms)))
    return arrays, gradient


def _numpy(values: Tensor) -> Array:
    found: Array = values.detach().double().cpu().numpy()
    return found


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gather(
    own: dict[int, tuple[Array, ...]], total: Vector, world: int
) -> tuple[dict[int, tuple[Array, ...]], Vector]:
    """Join the arrays of all ranks, and add their gradients."""
    found: list[Any] = [None] * world
    dist.all_gather_object(found, own)
    for part in total:
        dist.all_reduce(part)
    return {at: arrays for one in found for at, arrays in one.items()}, total
