"""Passes over whole rows, padded as the model wants it.

Causal models with positions of their own get padding on the left, as in generation; encoders,
classifiers, soft prompts and recurrent models want it on the right. The first pass over probes of
similar lengths compares a short probe in a padded batch with the same probe alone. Where neither
side agrees, probes of different lengths are read one after the other.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap._distributed import has_sharded_parameters
from riprap.behaviors._agreement import attempt, length_class, precision_of, results_agree
from riprap.behaviors._model_io import (
    TokenBatch,
    contiguous_head_input,
    device_of,
    has_soft_prompts,
    is_compiled,
    logits_of,
)
from riprap.behaviors._pass_state import comparison, right_padded
from riprap.errors import BehaviorError

LEFT, RIGHT, NONE = "left", "right", "none"
_SIDES: WeakKeyDictionary[nn.Module, dict[Any, str]] = WeakKeyDictionary()


def full_pass(
    model: nn.Module, batch: TokenBatch, n_positions: int, arguments: frozenset[str]
) -> Tensor:
    """Compute the logits at the last `n_positions` positions of whole rows.

    Args:
        arguments: names of the arguments of the model's `forward`.

    Returns:
        shape (n, n_positions, vocabulary); undefined before a row's first token.
    """
    batch = batch.to(device_of(model))
    if batch.attention_mask is None:
        return _pass(model, batch, n_positions, arguments, LEFT)
    return _pass(model, batch, n_positions, arguments, _padding_side(model, batch, arguments))


def _padding_side(model: nn.Module, batch: TokenBatch, arguments: frozenset[str]) -> str:
    """Return the side on which padding does not change the logits; `NONE` if it always does."""
    if model.training or is_compiled(model) or has_sharded_parameters(model):
        return LEFT  # passes of other shapes are random, are compiled anew, or need all ranks
    rows = batch.rows()
    short, long = min(rows, key=len), max(rows, key=len)
    known = _SIDES.setdefault(model, {})
    key = length_class(len(short)), length_class(len(long)), precision_of(model)
    if key in known:
        return known[key]
    one, padded = TokenBatch.pad([short]), TokenBatch.pad([long, short]).to(device_of(model))
    alone = partial(full_pass, model, one, 1, arguments)
    with comparison():
        expected = attempt(alone)
    if expected is None:
        return LEFT  # the pass itself shows what is wrong
    for side in (LEFT, RIGHT) if _prefers_left(model) else (RIGHT, LEFT):
        if results_agree(model, partial(_second_row, model, padded, arguments, side), alone):
            break
    else:
        side = NONE
    if float(expected.amax() - expected.amin()) > 1e-6:  # equal logits show nothing
        known[key] = side
    return side


def _second_row(
    model: nn.Module, batch: TokenBatch, arguments: frozenset[str], side: str
) -> Tensor:
    return _pass(model, batch, 1, arguments, side)[1:]


def _prefers_left(model: nn.Module) -> bool:
    """Return whether a model generates text, without soft prompts (which take no positions)."""
    generates = getattr(model, "can_generate", None)
    return (generates() if callable(generates) else True) and not has_soft_prompts(model)


def _pass(
    model: nn.Module, batch: TokenBatch, n_positions: int, arguments: frozenset[str], side: str
) -> Tensor:
    if side == NONE:
        return _one_by_one(model, batch, n_positions, arguments)
    padding: Tensor | None = None
    n_kept, ids, mask = n_positions, batch.input_ids, batch.attention_mask
    extra: dict[str, Any] = {}
    if side == RIGHT and mask is not None:
        padding = ids.shape[1] - mask.sum(1)
        n_kept += int(padding.max())
        index = (torch.arange(ids.shape[1], device=ids.device) + padding[:, None]) % ids.shape[1]
        ids, mask = ids.gather(1, index), mask.gather(1, index)
    if mask is not None and "attention_mask" in arguments:
        extra["attention_mask"] = mask
        if "position_ids" in arguments and padding is None:
            extra["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    elif mask is not None and padding is None:
        raise BehaviorError(
            "the probes have different lengths and the model's forward takes no "
            "`attention_mask`; give probes of equal length, or write a custom margin"
        )
    if "use_cache" in arguments:
        extra["use_cache"] = False
    if "logits_to_keep" in arguments:
        extra["logits_to_keep"] = min(n_kept, ids.shape[1])
    side_marked = nullcontext() if padding is None else right_padded(padding)
    with side_marked, contiguous_head_input(model):
        logits = logits_of(model(ids, **extra))
    return _last_positions(logits, len(batch), n_positions, padding)


def _last_positions(logits: Tensor, n: int, n_positions: int, padding: Tensor | None) -> Tensor:
    """Return the logits at the last positions before the padding, in at least float32."""
    if logits.dim() == 2 and n_positions == 1:
        logits, padding = logits.unsqueeze(1), None
    if logits.dim() != 3 or len(logits) != n or logits.shape[1] < n_positions:
        raise BehaviorError(
            f"the model returned logits of shape {tuple(logits.shape)} for {n} probes; "
            f"expected (n, T, vocabulary) with T >= {n_positions}"
        )
    if padding is None:
        return logits[:, -n_positions:].float()
    end = logits.shape[1] - padding[:, None]
    index = (end + torch.arange(-n_positions, 0, device=end.device)).clamp(min=0)
    rows = torch.arange(n, device=end.device)[:, None]
    return logits[rows, index].float()


def _one_by_one(
    model: nn.Module, batch: TokenBatch, n_positions: int, arguments: frozenset[str]
) -> Tensor:
    """Compute neighboring rows of equal length together, the others in passes of their own."""
    parts = []
    for length, group in groupby(batch.rows(), len):
        own = TokenBatch.pad(list(group)).to(batch.input_ids.device)
        logits = _pass(model, own, min(n_positions, length), arguments, LEFT)
        parts.append(functional.pad(logits, (0, 0, n_positions - logits.shape[1], 0)))
    return torch.cat(parts)
