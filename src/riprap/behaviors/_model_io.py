"""Logits from any model: transformers' output objects, tuples or bare tensors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from riprap._distributed import has_sharded_parameters
from riprap.behaviors import _prefix_cache as prefix_cache
from riprap.behaviors._base import ProbeSet
from riprap.behaviors._token_ids import explain_index_errors
from riprap.errors import BehaviorError


@dataclass(frozen=True)
class TokenBatch(ProbeSet):
    """Token sequences, left-padded: position −1 is the last token of each.

    Attributes:
        input_ids: shape (n, T), long.
        attention_mask: shape (n, T), 1 on real tokens; None where all lengths are equal.
    """

    input_ids: Tensor
    attention_mask: Tensor | None = None

    @classmethod
    def pad(cls, rows: list[list[int]], pad_id: int = 0) -> TokenBatch:
        """Left-pad `rows` to the same length.

        Raises:
            BehaviorError: there are no rows, or a row is empty.
        """
        if not rows:
            raise BehaviorError("there are no probes; give at least one")
        lengths = [len(row) for row in rows]
        if min(lengths) == 0:
            raise BehaviorError(f"probe {lengths.index(0)} is empty; it needs at least one token")
        width = max(lengths)
        ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
        if min(lengths) == width:
            return cls(ids)
        mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths])
        return cls(ids, mask)

    @property
    def max_length(self) -> int:
        """Length of the longest sequence, in tokens."""
        return self.input_ids.shape[1]

    def __len__(self) -> int:
        return len(self.input_ids)

    @classmethod
    def join(cls, batches: list[TokenBatch]) -> TokenBatch:
        """Concatenate the rows of `batches`, left-padded to the longest."""
        width = max(batch.input_ids.shape[1] for batch in batches)
        if all(b.attention_mask is None and b.input_ids.shape[1] == width for b in batches):
            return cls(torch.cat([batch.input_ids for batch in batches]))

        def widen(rows: Tensor) -> Tensor:
            return torch.nn.functional.pad(rows, (width - rows.shape[1], 0))

        masks = [
            torch.ones_like(b.input_ids) if b.attention_mask is None else b.attention_mask
            for b in batches
        ]
        ids = torch.cat([widen(batch.input_ids) for batch in batches])
        return cls(ids, torch.cat([widen(mask) for mask in masks]))

    def select(self, indices: list[int]) -> TokenBatch:
        """Return the rows at `indices`, without padding that none of them needs."""
        ids = self.input_ids[indices]
        if self.attention_mask is None:
            return TokenBatch(ids)
        mask = self.attention_mask[indices]
        longest = int(mask.sum(-1).max())
        ids, mask = ids[:, -longest:], mask[:, -longest:]
        return TokenBatch(ids, None if bool(mask.all()) else mask)

    def rows(self) -> list[list[int]]:
        """Return the token ids of each row, without padding."""
        ids = self.input_ids.tolist()
        if self.attention_mask is None:
            return ids
        lengths = self.attention_mask.sum(1).tolist()
        return [row[len(row) - length :] for row, length in zip(ids, lengths, strict=True)]

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch on `device`."""
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        return TokenBatch(self.input_ids.to(device), mask)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter; CPU for a model without parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def accepted_arguments(model: nn.Module) -> frozenset[str]:
    """Return the names of the arguments of the model's `forward` and of those it wraps."""
    names: set[str] = set()
    for module in (model, *_wrapped_models(model)):
        names.update(inspect.signature(module.forward).parameters)
    return frozenset(names)


def _wrapped_models(model: nn.Module) -> list[nn.Module]:
    """Return the models inside wrappers (PEFT, DDP, torch.compile), which pass arguments on."""
    inner: list[nn.Module] = []
    current = model
    while len(inner) < 5:
        getter = getattr(current, "get_base_model", None)
        wrapped = getter() if callable(getter) else None
        if wrapped is None or wrapped is current:
            wrapped = getattr(current, "_orig_mod", None)
        if wrapped is None and type(current).__name__.endswith("DataParallel"):
            wrapped = current.module
        if not isinstance(wrapped, nn.Module) or wrapped is current:
            break
        inner.append(wrapped)
        current = wrapped
    return inner


def logits_of(output: Any) -> Tensor:
    """Return the logits in a model's output.

    Raises:
        BehaviorError: the output has no logits.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else None
    if logits is None:
        logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)) and output:
        logits = output[0]
    if not isinstance(logits, Tensor):
        raise BehaviorError(
            f"the model returned {type(output).__name__} without logits; return a tensor, a tuple "
            "that starts with one or an object with `.logits`, or write a custom margin"
        )
    return logits


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
        return _full_pass(model, batch, n_positions, arguments)
    counts = torch.full((len(batch),), n_positions) if n_used is None else n_used.cpu()
    rows = batch.rows()
    plan = prefix_cache.plan_prefix_sharing(rows, counts.tolist(), group_size)
    key = (len(plan.common), tuple(map(len, rows)), n_positions, group_size)
    if not prefix_cache.saves_compute(plan, rows):
        return _full_pass(model, batch, n_positions, arguments)
    if prefix_cache.cached_check(model, key) is None:
        with torch.no_grad(), prefix_cache.prefix_pass():
            shared = prefix_cache.attempt(
                lambda: prefix_cache.run_plan(model, plan, n_positions, arguments)
            )
            full = _full_pass(model, batch, n_positions, arguments)
        prefix_cache.check_against_full_pass(model, key, shared, full, counts.to(full.device))
    logits = None
    if prefix_cache.cached_check(model, key):
        logits = prefix_cache.run_plan(model, plan, n_positions, arguments)
    return _full_pass(model, batch, n_positions, arguments) if logits is None else logits


def can_share_prefixes(model: nn.Module, arguments: frozenset[str]) -> bool:
    """Return whether a model takes part of its rows from a cache, in passes of any shape.

    Args:
        arguments: names of the arguments of the model's `forward`.
    """
    return (
        arguments >= prefix_cache.REQUIRED_ARGUMENTS
        and not model.training
        and not _is_compiled(model)
        and not has_sharded_parameters(model)
    )


def _is_compiled(model: nn.Module) -> bool:
    """Return whether a pass of another shape would recompile the model."""
    return any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in (model, *_wrapped_models(model))
    )


def _full_pass(
    model: nn.Module, batch: TokenBatch, n_positions: int, arguments: frozenset[str]
) -> Tensor:
    batch = batch.to(device_of(model))
    extra: dict[str, Any] = {}
    if batch.attention_mask is not None:
        if "attention_mask" not in arguments:
            raise BehaviorError(
                "the probes have different lengths and the model's forward takes no "
                "`attention_mask`; give probes of equal length, or write a custom margin"
            )
        extra["attention_mask"] = batch.attention_mask
        if "position_ids" in arguments:
            extra["position_ids"] = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    if "use_cache" in arguments:
        extra["use_cache"] = False
    if "logits_to_keep" in arguments:
        extra["logits_to_keep"] = n_positions
    logits = logits_of(model(batch.input_ids, **extra))
    if logits.dim() == 2 and n_positions == 1:
        logits = logits.unsqueeze(1)
    if logits.dim() != 3 or len(logits) != len(batch) or logits.shape[1] < n_positions:
        raise BehaviorError(
            f"the model returned logits of shape {tuple(logits.shape)} for {len(batch)} probes; "
            f"expected (n, T, vocabulary) with T >= {n_positions}"
        )
    return logits[:, -n_positions:].float()
