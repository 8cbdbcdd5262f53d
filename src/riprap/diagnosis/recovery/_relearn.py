"""A few steps on a few examples, on a copy: what a reminder brings back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from riprap.diagnosis._weight_sources import Weights, kept
from riprap.diagnosis.recovery._examples import Examples
from riprap.errors import ConfigError
from riprap.evaluation import no_trace

LARGE = 20_000_000  # parameters; a larger model learns through adapters
RANK = 8
RATES = (1e-3, 3e-3, 1e-2)  # a step's size as a share of each tensor's own root mean square
ADAPTER_RATES = (3e-4, 1e-3, 3e-3)  # an adapter begins at 0, so that its steps are not relative
STEPS = (1, 2, 4, 8, 16)
LEAST = 1e-3  # root mean square of a tensor that has none
_ADAPTERS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")

Scores = Callable[[], Any]


@contextmanager
def copy_of(model: nn.Module, home: Weights | None = None) -> Iterator[tuple[list[Tensor], bool]]:
    """The model, in evaluation mode, with parameters that may be trained; afterwards as it was.

    Small models train all their parameters. Large ones get fresh LoRA adapters of rank 8, and a
    model that has adapters trains those; where they are switched off, they are on meanwhile and
    begin at 0, which is the same model.

    Yields:
        the parameters, and whether they are adapters.
    """
    adapters = _adapters(model)
    with no_trace(model):
        if learns_by_adapters(model) and not adapters:
            with _adapted(model) as fresh:
                yield fresh, True
            return
        own: list[Tensor] = adapters or list(model.parameters())
        model.requires_grad_(False)
        for parameter in own:
            parameter.requires_grad_(True)
        with kept(model, home, own), _from_zero(model):
            yield own, bool(adapters)


def learns_by_adapters(model: nn.Module) -> bool:
    """Whether a copy of the model trains adapters in place of all its parameters."""
    return bool(_adapters(model)) or sum(p.numel() for p in model.parameters()) > LARGE


def _adapters(model: nn.Module) -> list[Tensor]:
    return [p for name, p in model.named_parameters() if "lora_" in name]


@contextmanager
def _from_zero(model: nn.Module) -> Iterator[None]:
    """Adapters that are switched off are on, at 0; afterwards off again."""
    off: list[Any] = [
        part for part in model.modules() if hasattr(part, "lora_B") and part.disable_adapters
    ]
    if any(layer.lora_magnitude_vector for layer in off):
        raise ConfigError(
            "recover: a DoRA adapter that is switched off is no adapter at 0: give reference= a "
            "model or weights, in place of None"
        )
    torch.manual_seed(0)  # adapters begin at random; `no_trace` puts the generators back
    try:
        for layer in off:
            layer.enable_adapters(True)
            layer.requires_grad_(False)
            for name in layer.active_adapters:
                layer.reset_lora_parameters(name, True)
                for kind in _ADAPTERS:
                    if name in (parts := getattr(layer, kind)):
                        parts[name].requires_grad_(True)
        yield
    finally:
        for layer in off:
            layer.enable_adapters(False)


@contextmanager
def _adapted(model: nn.Module) -> Iterator[list[Tensor]]:
    """Fresh adapters on all linear layers, taken off again afterwards."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    torch.manual_seed(0)  # adapters begin at random; `no_trace` puts the generators back
    wrapped: Any = get_peft_model(model, config)  # type: ignore[arg-type]
    try:
        for module in wrapped.modules():
            module.training = False
        yield [p for name, p in wrapped.named_parameters() if "lora_" in name]
    finally:
        wrapped.unload()


def steps_of(
    model: nn.Module,
    parameters: Sequence[Tensor],
    adapters: bool,
    examples: Examples,
    chosen: Sequence[int],
    rate: float,
) -> Iterator[int]:
    """Learn the chosen examples, all of them at each step; stops after each of `STEPS`.

    Adam with a step relative to each tensor's size (Shazeer and Stern, 1804.04235, section 8), so
    that one grid of rates fits models of every scale.
    """
    groups = [
        {"params": [p], "lr": rate if adapters else rate * max(_size(p), LEAST)} for p in parameters
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    for step in range(1, max(STEPS) + 1):
        with torch.enable_grad():
            examples.backward(model, chosen)
        optimizer.step()
        optimizer.zero_grad()
        if step in STEPS:
            yield step


def _size(parameter: Tensor) -> float:
    return float(parameter.detach().float().square().mean().sqrt())


def rates(adapters: bool) -> tuple[float, ...]:
    """The declared grid."""
    return ADAPTER_RATES if adapters else RATES
