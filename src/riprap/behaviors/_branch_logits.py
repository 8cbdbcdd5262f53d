"""Logits after several short continuations of every prompt, in one pass where possible.

A model with maskable attention gets the prompt and all branches in one row, with a mask and
positions that say what follows what. The first pass of each kind checks on a few probes that the
logits are those of separate rows. A model that fails the check, or takes no such mask, computes
separate rows, whose prompts are shared through the key-value cache if it has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from riprap.behaviors import _prefix_cache as prefix_cache
from riprap.behaviors._agreement import few, length_class
from riprap.behaviors._last_logits import can_share_prefixes, last_logits
from riprap.behaviors._model_io import (
    TokenBatch,
    accepted_arguments,
    contiguous_head_input,
    device_of,
    logits_of,
)
from riprap.behaviors._pass_state import masked_tokens, prefix_pass
from riprap.behaviors._prefix_tree import Row, pack_branches, root_first


def branch_logits(model: nn.Module, batch: TokenBatch, branches: Sequence[Row]) -> Tensor:
    """Compute the logits at the end of each prompt, and at the end of each branch after it.

    Args:
        branches: token ids after the prompts; the beginnings of a branch come before it.

    Returns:
        shape (n, 1 + branches, vocabulary), in at least float32.
    """
    arguments = accepted_arguments(model)
    if _attention(model) is None or not can_share_prefixes(model, arguments):
        return _separate_rows(model, batch, branches)
    rows = batch.rows()
    plan = prefix_cache.plan_prefix_sharing(rows, [1] * len(rows))
    lengths = list(map(len, rows))
    key = (tuple(branches), plan.kind, length_class(max(lengths)))
    compared = few(lengths)

    def packed() -> Tensor | None:
        return _packed_rows(model, plan.select(compared), branches, arguments)

    def separate() -> Tensor:
        return _separate_rows(model, batch.select(compared), branches)

    used, logits = torch.full((len(compared),), 1 + len(branches)), None
    if prefix_cache.plan_agrees(model, key, packed, separate, used):
        logits = _packed_rows(model, plan, branches, arguments)
    return _separate_rows(model, batch, branches) if logits is None else logits


def _attention(model: nn.Module) -> str | None:
    """Return the kind of attention that a packed row's mask is for; None for any other."""
    kind = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return kind if kind in ("eager", "sdpa") else None


def _packed_rows(
    model: nn.Module,
    plan: prefix_cache.PrefixPlan,
    branches: Sequence[Row],
    arguments: frozenset[str],
) -> Tensor | None:
    cache, n_rows = None, len(plan.suffixes)
    if plan.common:
        cache = prefix_cache.common_cache(model, plan.common, n_rows)
        if cache is None:
            return None
    batch = TokenBatch.pad(plan.suffixes).to(device_of(model))
    mask = batch.attention_mask
    mask = torch.ones_like(batch.input_ids) if mask is None else mask
    ids, positions, attends = pack_branches(batch.input_ids, mask, branches, len(plan.common))
    if _attention(model) == "eager":  # its mask is added
        lowest = torch.finfo(torch.float32).min
        attends = torch.zeros(attends.shape, device=ids.device).masked_fill(~attends, lowest)
    extra: dict[str, Any] = {"position_ids": positions, "use_cache": cache is not None}
    if "logits_to_keep" in arguments:
        extra["logits_to_keep"] = 1 + len(branches)
    all_real = mask.new_ones(n_rows, len(branches))
    tokens = torch.cat([mask[:, :-1], all_real, mask[:, -1:]], 1)
    with masked_tokens(tokens), contiguous_head_input(model):
        output = model(ids, attention_mask=attends, past_key_values=cache, **extra)
    return root_first(logits_of(output)[:, -1 - len(branches) :].float())


def _separate_rows(model: nn.Module, batch: TokenBatch, branches: Sequence[Row]) -> Tensor:
    """Compute each branch in a row of its own; hooks see only the pass over the prompts."""
    root, rows = last_logits(model, batch)[:, -1], batch.rows()
    depths = sorted({len(branch) for branch in branches})
    groups = [[b for b in branches if len(b) == depth] for depth in depths]
    if "attention_mask" in accepted_arguments(model):
        groups = [list(branches)]  # rows of different lengths can be padded
    parts: dict[Row, Tensor] = {}
    with prefix_pass():
        for group in groups:
            together = TokenBatch.pad([[*row, *branch] for row in rows for branch in group])
            logits = last_logits(model, together, group_size=len(group))[:, -1]
            parts |= zip(group, logits.unflatten(0, (len(rows), len(group))).unbind(1), strict=True)
    return torch.stack([root, *(parts[branch] for branch in branches)], 1)
