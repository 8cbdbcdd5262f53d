"""OSFT as PEFT has it: fine-tuning orthogonal to the leading singular directions of each weight."""

from __future__ import annotations

from typing import Any

from peft import OSFConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from riprap.errors import ConfigError


def osft(model: nn.Module, preserved: float) -> nn.Module:
    """Return the model with all but its last singular directions of each linear weight frozen.

    The rank is constant, as in PEFT: without the paper's ranks by layer and task (2504.07097). PEFT
    projects gradients, so that a step keeps the frozen directions under SGD; Adam rescales what is
    projected, and its step keeps them only in part.

    Args:
        preserved: share of the singular directions that are frozen.

    Raises:
        ConfigError: the model has an adapter already, or no linear layer that can be wrapped.
    """
    if isinstance(model, PeftModel):
        raise ConfigError(
            "OSFT trains singular directions of the weights, and here the weights are frozen under "
            "an adapter"
        )
    targets: Any = "all-linear" if isinstance(model, PreTrainedModel) else linear_layers(model)
    if not targets:
        raise ConfigError("OSFT wraps linear layers, and the model has none that it can wrap")
    wrapped: Any = get_peft_model(
        model, OSFConfig(effective_rank=preserved, target_modules=targets)
    )
    return wrapped.train()  # type: ignore[no-any-return]


def linear_layers(model: nn.Module) -> list[str]:
    """Return the names of the linear layers that run by themselves.

    Torch's attention reads the weight of its output layer instead.
    """
    inside = {
        id(part)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        for part in module.modules()
    }
    return [
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and id(part) not in inside
    ]
