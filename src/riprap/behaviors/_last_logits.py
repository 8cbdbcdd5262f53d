"""Logits at the last positions of probes, with shared prefixes computed once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from riprap._distributed import has_sharded_parameters
from riprap.behaviors import _prefix_cache as prefix_cache
from riprap.behaviors._agreement import few, length_class
from riprap.behaviors._model_io import (
    TokenBatch,
    accepted_arguments,
    has_soft_prompts,
    is_compiled,
)
from riprap.behaviors._padding import full_pass
from riprap.behaviors._token_ids import explain_index_errors


def last_logits(
    model: nn.Module,
    batch: TokenBatch,
    n_positions: int = 1,
    n_used: Tensor | None = None,
    group_size: int = 1,
) -> Tensor:
    """Compute the logits at the last `n_positions` positions of each sequence.

    Args:
        n_used: how many of a sequence's last positions the caller reads, shape (n,), at most
            `n_positions`; the logits at the others are undefined. None: all of them.
        group_size: how many neighboring sequences share a prompt.

    Returns:
        shape (n, n_positions, vocabulary), in at least float32. Output of shape (n, vocabulary)
        is taken as the last position.

    Raises:
        BehaviorError: the probes have different lengths and the model takes no `attention_mask`,
            or the logits have another shape.
    """
    with explain_index_errors(batch.input_ids):
        return _last_logits(model, batch, n_positions, n_used, group_size)


def _last_logits(
    model: nn.Module, batch: TokenBatch, n_positions: int, n_used: Tensor | None, group_size: int
) -> Tensor:
    arguments = accepted_arguments(model)
    if not can_share_prefixes(model, arguments):
        return full_pass(model, batch, n_positions, arguments)
    counts = torch.full((len(batch),), n_positions) if n_used is None else n_used.cpu()
    rows = batch.rows()
    plan = prefix_cache.plan_prefix_sharing(rows, counts.tolist(), group_size)
    if not prefix_cache.saves_compute(plan, rows):
        return full_pass(model, batch, n_positions, arguments)
    lengths = list(map(len, rows))
    key = (plan.kind, n_positions > 1, length_class(max(lengths)))
    compared = [
        row
        for first in few(lengths[::group_size])
        for row in range(first * group_size, min((first + 1) * group_size, len(rows)))
    ]

    def shared() -> Tensor | None:
        return prefix_cache.run_plan(model, plan.select(compared), n_positions, arguments)

    def full() -> Tensor:
        return full_pass(model, batch.select(compared), n_positions, arguments)

    logits = None
    if prefix_cache.plan_agrees(model, key, shared, full, counts[compared]):
        logits = prefix_cache.run_plan(model, plan, n_positions, arguments)
    return full_pass(model, batch, n_positions, arguments) if logits is None else logits


def can_share_prefixes(model: nn.Module, arguments: frozenset[str]) -> bool:
    """Return whether a model takes part of its rows from a cache, in passes of any shape.

    Args:
        arguments: names of the arguments of the model's `forward`.
    """
    return (
        arguments >= prefix_cache.REQUIRED_ARGUMENTS
        and not model.training
        and not has_soft_prompts(model)
        and not is_compiled(model)
        and not has_sharded_parameters(model)
    )
