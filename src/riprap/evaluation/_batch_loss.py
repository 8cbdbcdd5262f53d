"""A loss on batches that somebody gives: the model's own, and how batches reach the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from riprap.errors import ConfigError

Loss = Callable[[nn.Module, Any], Tensor]  # loss(model, batch), a scalar


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a model works out itself: `model(**batch).loss`, a scalar.

    Raises:
        ConfigError: the batch is no mapping, the model does not take what it holds, or returned no
            loss for it.
    """
    if not isinstance(batch, Mapping):
        raise ConfigError(
            f"a batch of examples is a {type(batch).__name__}, and the model's own loss needs its "
            "arguments by name: give loss=, a function of the model and the batch"
        )
    if strange := _not_taken(model, batch):
        raise ConfigError(
            f"a batch of examples holds {strange[0]!r}, which the model's forward does not take: "
            "give loss=, a function of the model and the batch"
        )
    output = model(**batch)
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        raise ConfigError(
            "the model gave no loss for a batch of examples: put `labels` into it, or give loss=, "
            "a function of the model and the batch"
        )
    return loss


def _not_taken(model: nn.Module, names: Mapping[Any, Any]) -> list[Any]:
    """Those that are no arguments of the model's; a wrapper that takes any is not asked."""
    takes = inspect.signature(model.forward).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in takes.values()):
        return []
    return [name for name in names if name not in takes]


def moved(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on `device`: in mappings, lists, tuples, or whatever has `.to`."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: moved(part, device) for name, part in batch.items()}
    if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields"):
        return type(batch)(moved(part, device) for part in batch)
    return batch.to(device) if hasattr(batch, "to") else batch
