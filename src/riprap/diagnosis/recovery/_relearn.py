"""Relearning: a few optimizer steps on a few examples, on a copy of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from riprap._extras import require
from riprap.diagnosis._weight_sources import Weights, restore_weights
from riprap.diagnosis.recovery._examples import Examples
from riprap.errors import ConfigError
from riprap.evaluation import preserve_training_state, set_evaluation_mode

MAX_FULL_PARAMETERS = 20_000_000  # a larger model learns through adapters
LORA_RANK = 8
FULL_LEARNING_RATES = (1e-3, 3e-3, 1e-2)  # relative to each tensor's root mean square
ADAPTER_LEARNING_RATES = (3e-4, 1e-3, 3e-3)  # absolute, because adapters start at 0
STEPS = (1, 2, 4, 8, 16)
MIN_RMS = 1e-3  # for tensors that are (almost) 0
_ADAPTERS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")


@contextmanager
def trainable_copy(
    model: nn.Module, weights_on_disk: Weights | None = None
) -> Iterator[tuple[list[Tensor], bool]]:
    """Make the model trainable, in evaluation mode; restore it bit by bit on exit.

    Small models train all parameters. Large models get fresh LoRA adapters of rank 8. A model that
    has adapters trains these; if they are disabled, they are enabled and start at 0, which is the
    same model. Yields the trainable parameters, and whether they are adapters.
    """
    adapters = _adapter_parameters(model)
    with preserve_training_state(model):
        if trains_adapters(model) and not adapters:
            with _fresh_adapters(model) as fresh:
                yield fresh, True
            return
        trainable: list[Tensor] = adapters or list(model.parameters())
        model.requires_grad_(False)
        for parameter in trainable:
            parameter.requires_grad_(True)
        with restore_weights(model, weights_on_disk, trainable), _reset_adapters(model):
            yield trainable, bool(adapters)


def trains_adapters(model: nn.Module) -> bool:
    """Return whether `trainable_copy` trains adapters instead of all parameters."""
    n_parameters = sum(p.numel() for p in model.parameters())
    return bool(_adapter_parameters(model)) or n_parameters > MAX_FULL_PARAMETERS


def _adapter_parameters(model: nn.Module) -> list[Tensor]:
    return [p for name, p in model.named_parameters() if "lora_" in name]


@contextmanager
def _reset_adapters(model: nn.Module) -> Iterator[None]:
    """Enable disabled adapters, starting at 0; disable them again on exit."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "lora_B")]
    disabled = [layer for layer in layers if layer.disable_adapters]
    if any(layer.lora_magnitude_vector for layer in disabled):
        raise ConfigError(
            "recover: a disabled DoRA adapter cannot start at 0: pass a model or weights as "
            "reference= instead of None"
        )
    torch.manual_seed(0)  # adapters start at random; `preserve_training_state` restores generators
    try:
        for layer in disabled:
            layer.enable_adapters(True)
            layer.requires_grad_(False)
            for name in layer.active_adapters:
                layer.reset_lora_parameters(name, True)
                for kind in _ADAPTERS:
                    if name in (parts := getattr(layer, kind)):
                        parts[name].requires_grad_(True)
        yield
    finally:
        for layer in disabled:
            layer.enable_adapters(False)


@contextmanager
def _fresh_adapters(model: nn.Module) -> Iterator[list[Tensor]]:
    """Add fresh adapters to all linear layers; remove them on exit."""
    require("hf", "peft")
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear")
    torch.manual_seed(0)  # adapters start at random; `preserve_training_state` restores generators
    wrapped: Any = get_peft_model(model, config)  # type: ignore[arg-type]
    try:
        set_evaluation_mode(wrapped)
        yield [p for name, p in wrapped.named_parameters() if "lora_" in name]
    finally:
        wrapped.unload()


def train_steps(
    model: nn.Module,
    parameters: Sequence[Tensor],
    are_adapters: bool,
    examples: Examples,
    chosen: Sequence[int],
    learning_rate: float,
) -> Iterator[int]:
    """Train on the chosen examples, all of them at each step; pause after each count in `STEPS`.

    Adam with steps relative to each tensor's size (Shazeer and Stern, 1804.04235, section 8), so
    that one grid of learning rates suits models of every scale. Yields the number of steps so far.
    """
    scales = [1.0 if are_adapters else max(_rms(p), MIN_RMS) for p in parameters]
    groups = [
        {"params": [p], "lr": learning_rate * scale}
        for p, scale in zip(parameters, scales, strict=True)
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    for step in range(1, max(STEPS) + 1):
        with torch.enable_grad():
            examples.backward(model, chosen)
        optimizer.step()
        optimizer.zero_grad()
        if step in STEPS:
            yield step


def _rms(parameter: Tensor) -> float:
    return float(parameter.detach().float().square().mean().sqrt())


def learning_rates(are_adapters: bool) -> tuple[float, ...]:
    """Return the grid of learning rates."""
    return ADAPTER_LEARNING_RATES if are_adapters else FULL_LEARNING_RATES
