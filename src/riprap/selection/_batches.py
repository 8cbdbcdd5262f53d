"""Batches: how many rows, which of them, and what cannot be taken apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from riprap.errors import ConfigError

PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "seq_idx")
Call = tuple[tuple[Any, ...], dict[str, Any]]  # the arguments of a forward pass


def call_of(batch: Any) -> Call:
    """A batch as arguments: a mapping by name, a tuple or list by place, a tensor alone."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    return (batch,), {}


def count(call: Call) -> int:
    """Rows of a batch: those of its first tensor.

    Raises:
        ConfigError: there is none, or several samples are packed in one row.
    """
    named = call[1]
    for key in PACKED:
        if named.get(key) is not None:
            raise ConfigError(
                f"the batch is packed ({key}): several samples share a row, and rows are what is "
                "selected; turn packing and padding-free batches off"
            )
    _refuse_restarts(named)
    main = named.get("input_ids", named.get("inputs_embeds"))
    tensors = [main, *tree_flatten(call)[0]] if main is not None else tree_flatten(call)[0]
    for value in tensors:
        if isinstance(value, Tensor) and value.dim() > 0:
            return len(value)
    raise ConfigError("the batch holds no tensor with rows: give tensors of shape (rows, ...)")


def _refuse_restarts(named: Mapping[str, Any]) -> None:
    positions, mask = named.get("position_ids"), named.get("attention_mask")
    if not isinstance(positions, Tensor) or positions.dim() != 2:
        return
    restarts = positions[:, 1:] < positions[:, :-1]
    if isinstance(mask, Tensor) and mask.shape == positions.shape:
        restarts = restarts & mask[:, 1:].bool() & mask[:, :-1].bool()
    if bool(restarts.any()):
        raise ConfigError(
            "the batch is packed (position_ids start again within a row): several samples share "
            "a row, and rows are what is selected; turn packing and padding-free batches off"
        )


def names_of(named: dict[str, Any], column: str | None) -> list[Any] | None:
    """What the rows are called, taken out of the batch; None where nothing was asked for.

    Raises:
        ConfigError: the column is not there.
    """
    if column is None:
        return None
    if column not in named:
        raise ConfigError(
            f"row_id={column!r} is not among what the model is given ({', '.join(named)}): name "
            "another column, and let the loop keep it (Trainer: remove_unused_columns=False)"
        )
    ids = named.pop(column)
    return ids.tolist() if isinstance(ids, Tensor) else list(ids)


def take(call: Call, rows: Sequence[int], of: int) -> Call:
    """The same arguments for some of `of` rows; what is not per row stays as it is."""

    def part(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() > 0 and len(value) == of:
            return value[torch.as_tensor(rows, device=value.device)]
        return value

    if len(rows) == of:
        return call
    taken: Call = tree_map(part, call)
    return taken


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse models that do not run layer by layer in this process.

    Raises:
        ConfigError: compiled, sharded by FSDP, or replicated by DataParallel.
    """
    for name, module in model.named_modules():
        where = name or "the model"
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if "OptimizedModule" in kinds or getattr(module, "_compiled_call_impl", None) is not None:
            raise ConfigError(
                f"{where} is compiled, and a compiled layer calls no hooks in its backward pass: "
                "give the selector the model as it is without torch.compile"
            )
        if kinds & {"FSDPModule", "FullyShardedDataParallel"}:
            raise ConfigError(
                f"{where} is sharded by FSDP, where no rank holds the gradient of a sample: "
                "select under DDP or on one device"
            )
        if "DataParallel" in kinds:
            raise ConfigError(f"{where} is a DataParallel, which splits batches: use DDP instead")
