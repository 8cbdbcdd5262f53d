"""Batches: count and select their rows; refuse batches and models without separate rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from riprap.errors import ConfigError

PACKED_KEYS = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "seq_idx")
SHARED_KEYS = ("cache_position",)  # arguments that all rows share, whatever their length is
ForwardArgs = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a forward pass


def forward_args(batch: Any) -> ForwardArgs:
    """Return a batch as arguments: a mapping by name, a tuple or list by position, or a tensor."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    return (batch,), {}


def count_rows(call: ForwardArgs) -> int:
    """Count the rows of a batch: those of its first tensor; refuse packed batches."""
    named = call[1]
    signs = [key for key in PACKED_KEYS if named.get(key) is not None]
    if _positions_restart(named):
        signs.append("position_ids restart within a row")
    if signs:
        raise ConfigError(
            f"the batch is packed ({signs[0]}): several samples share a row, and the selector "
            "selects rows; turn packing and padding-free batches off"
        )
    return len(_main_tensor(call))


def layer_dims(call: ForwardArgs) -> int:
    """Return the dimensions of the output of a layer that keeps those of the batch."""
    main = _main_tensor(call)
    return main.dim() if main.is_floating_point() else main.dim() + 1  # embedded


def token_shape(call: ForwardArgs) -> tuple[int, int] | None:
    """Return (rows, positions) of a batch of tokens; None if a layer's input cannot tell them."""
    main = _main_tensor(call)
    n_dims = 3 if main.is_floating_point() else 2
    if main.dim() != n_dims or main.shape[0] == main.shape[1]:
        return None
    return main.shape[0], main.shape[1]


def _main_tensor(call: ForwardArgs) -> Tensor:
    main = call[1].get("input_ids", call[1].get("inputs_embeds"))
    for value in (main, *tree_flatten(call)[0]):
        if isinstance(value, Tensor) and value.dim() > 0:
            return value
    raise ConfigError("the batch has no tensor with rows: give tensors of shape (rows, ...)")


def _positions_restart(named: Mapping[str, Any]) -> bool:
    positions, mask = named.get("position_ids"), named.get("attention_mask")
    if not isinstance(positions, Tensor) or positions.dim() != 2:
        return False
    restarts = positions[:, 1:] < positions[:, :-1]
    if isinstance(mask, Tensor) and mask.shape == positions.shape:
        restarts = restarts & mask[:, 1:].bool() & mask[:, :-1].bool()
    return bool(restarts.any())


def pop_row_ids(named: dict[str, Any], column: str | None) -> list[Any] | None:
    """Remove the column of row ids from a batch and return it; None without a column."""
    if column is None:
        return None
    if column not in named:
        raise ConfigError(
            f"row_id={column!r} is not an input of the model ({', '.join(named)}): name another "
            "column, and make the loop pass it (Trainer: remove_unused_columns=False)"
        )
    ids = named.pop(column)
    return ids.tolist() if isinstance(ids, Tensor) else list(ids)


def select_rows(call: ForwardArgs, rows: Sequence[int], n_rows: int) -> ForwardArgs:
    """Return the arguments for some of `n_rows` rows; values without rows stay unchanged."""

    def select(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() > 0 and len(value) == n_rows:
            return value[torch.as_tensor(rows, device=value.device)]
        return value

    if len(rows) == n_rows:
        return call
    args, named = call
    selected = {k: v if k in SHARED_KEYS else tree_map(select, v) for k, v in named.items()}
    positions = named.get("position_ids")
    if isinstance(positions, Tensor) and positions.dim() != 2:  # of time, height, width; or shared
        at = torch.as_tensor(rows, device=positions.device)
        selected["position_ids"] = positions[:, at] if positions.dim() == 3 else positions
    return tree_map(select, args), selected


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse models that are compiled, sharded by FSDP, or replicated by DataParallel."""
    for name, module in model.named_modules():
        where = name or "the model"
        classes = {cls.__name__ for cls in type(module).__mro__}
        if "OptimizedModule" in classes or getattr(module, "_compiled_call_impl", None) is not None:
            raise ConfigError(
                f"{where} is compiled, and a compiled layer calls no hooks in its backward pass: "
                "give the selector the model without torch.compile"
            )
        if classes & {"FSDPModule", "FullyShardedDataParallel"}:
            raise ConfigError(
                f"{where} is sharded by FSDP, where no rank has the whole gradient of a sample: "
                "select rows under DDP or on one device"
            )
        if "DataParallel" in classes:
            raise ConfigError(f"{where} is a DataParallel, which splits batches: use DDP instead")
