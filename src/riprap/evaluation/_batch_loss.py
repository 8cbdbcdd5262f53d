"""Losses on batches of training examples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from riprap.errors import ConfigError

Loss = Callable[[nn.Module, Any], Tensor]  # loss(model, batch), a scalar


def model_loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss that the model computes itself: `model(**batch).loss`, a scalar.

    Raises:
        ConfigError: the batch is not a mapping, has an entry that the model does not accept, or
            the model returned no loss.
    """
    if not isinstance(batch, Mapping):
        raise ConfigError(
            f"a batch of examples is a {type(batch).__name__}, but the model's own loss needs its "
            "arguments by name; give loss=, a function of the model and the batch"
        )
    if unknown := _unknown_arguments(model, batch):
        raise ConfigError(
            f"a batch of examples contains {unknown[0]!r}, which the model's forward does not "
            "accept; give loss=, a function of the model and the batch"
        )
    output = model(**batch)
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        raise ConfigError(
            "the model returned no loss for a batch of examples; add `labels` to it, or give "
            "loss=, a function of the model and the batch"
        )
    return loss


def _unknown_arguments(model: nn.Module, names: Mapping[Any, Any]) -> list[Any]:
    """Return the names that the model's forward does not accept; none if it accepts **kwargs."""
    parameters = inspect.signature(model.forward).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return []
    return [name for name in names if name not in parameters]


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch: in mappings, lists, tuples, or any object with `.to`."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: to_device(part, device) for name, part in batch.items()}
    if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields"):
        return type(batch)(to_device(part, device) for part in batch)
    return batch.to(device) if hasattr(batch, "to") else batch
