"""The way from a model to its reference, walked in place: over weights, or by adapters' scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from riprap.diagnosis._weight_sources import (
    Reference,
    Wanted,
    Weights,
    everything,
    fitting,
    kept,
    move,
    weights_of,
)
from riprap.errors import ConfigError
from riprap.evaluation import layer_names
from riprap.linalg import widened


class Way(Protocol):
    """What can be moved, by name, and how.

    Attributes:
        names: weights that can be moved, as in `model.named_parameters()`.
    """

    names: list[str]

    def go(self, share: float, names: Sequence[str] | None = None) -> None:
        """Put weights at a share of the way: 0 the model as it is, 1 the reference; None: all."""

    def change(self, name: str) -> tuple[Tensor, Tensor]:
        """A weight at the reference and θ − θ₀, in at least float32, wherever the model stands."""


class _ByWeights:
    def __init__(self, model: nn.Module, here: Weights, there: Weights, names: list[str]) -> None:
        self.model, self.here, self.there, self.names = model, here, there, names

    def go(self, share: float, names: Sequence[str] | None = None) -> None:
        chosen = self.names if names is None else list(names)
        move(self.model, self.here, self.there, share, chosen)

    def change(self, name: str) -> tuple[Tensor, Tensor]:
        before = widened(self.there[name].detach())
        return before, widened(self.here[name].detach()).to(before.device) - before


class _ByScale:
    def __init__(self, layers: dict[str, Any]) -> None:
        self.layers, self.names = layers, list(layers)
        self.scales = {name: dict(layer.scaling) for name, layer in layers.items()}

    def go(self, share: float, names: Sequence[str] | None = None) -> None:
        for name in self.names if names is None else names:
            for adapter, scale in self.scales[name].items():
                # Times (1 − 0) a scale is what it was; set, it is so whatever its type.
                new = scale if share == 0 else (1 - share) * scale
                self.layers[name].scaling[adapter] = new

    def change(self, name: str) -> tuple[Tensor, Tensor]:
        layer, now = self.layers[name], dict(self.layers[name].scaling)
        layer.scaling.update(self.scales[name])
        try:
            used = [adapter for adapter in layer.active_adapters if adapter in layer.scaling]
            parts = [layer.get_delta_weight(adapter) for adapter in used]
        finally:
            layer.scaling.update(now)
        return widened(layer.get_base_layer().weight.detach()), widened(sum(parts).detach())


@contextmanager
def way_back(
    model: nn.Module,
    reference: Reference,
    home: Weights | None = None,
    wanted: Wanted = everything,
) -> Iterator[Way]:
    """The way to the reference; afterwards the model is bit by bit what it was.

    A reference that is a model lends its parameters: buffers stay those of `model`.

    Args:
        reference: a model or weights; None: `model` without its LoRA adapters, to which the way
            leads by their scale.
        home: see `kept`; of no use to adapters.
        wanted: which weights are moved, by name.

    Raises:
        ConfigError: nothing that could be moved, weights of another model, or adapters that a
            scale of 0 does not undo.
    """
    if reference is None:
        way = _ByScale({n: layer for n, layer in _adapted(model).items() if wanted(n)})
        _something(way)
        try:
            yield way
        finally:
            way.go(0.0)
        return
    there = weights_of(reference)
    names = fitting(model, there, wanted)
    with kept(model, home) as here:
        found = _ByWeights(model, here, there, names)
        _something(found)
        yield found


def _something(way: Way) -> None:
    if not way.names:
        raise ConfigError("no weight is wanted: `only` holds for none of the model's names")


def _adapted(model: nn.Module) -> dict[str, Any]:
    """LoRA layers by the name of the weight that each adapts.

    Raises:
        ConfigError: there is none, or the model is not what it was once their scale is 0.
    """
    if not hasattr(model, "disable_adapter"):
        raise ConfigError(
            "no reference is given, and the model has no adapter that could be scaled down: "
            "give the model or the weights as they were before"
        )
    names = {id(part): name for name, part in model.named_parameters()}
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        if hasattr(module, "original_module"):
            raise ConfigError(
                f"{name} was trained whole beside the adapters, which no scale undoes: give the "
                "weights as they were before"
            )
        if not hasattr(module, "get_base_layer") or not hasattr(module, "active_adapters"):
            continue
        layer: Any = module
        if why := _not_scaled(layer):
            raise ConfigError(f"the adapter of {name} cannot be scaled down: {why}")
        found[names[id(layer.get_base_layer().weight)]] = layer
    if not found:
        raise ConfigError("the model has adapters, but none of a kind that could be scaled down")
    return found


def _not_scaled(layer: Any) -> str:
    """Why a scale of 0 would not be the layer without its adapters; empty where it is."""
    plain = hasattr(layer, "scaling") and hasattr(layer, "lora_A")
    if not plain or not hasattr(layer.get_base_layer(), "weight"):
        return "it is no LoRA of a weight; give the weights as they were before"
    if getattr(layer, "lora_variant", None) or len(getattr(layer, "lora_magnitude_vector", ())):
        return "at scale 0 a DoRA or other variant is not its base; give the weights before"
    if layer.merged:
        return "it is merged into its weight; unmerge it first"
    return "it is switched off; switch it on first" if layer.disable_adapters else ""


def by_layer(model: nn.Module, names: Sequence[str]) -> dict[str, list[str]]:
    """Names of weights by the layer they belong to: embeddings, blocks, head, in their order.

    A weight that is shared, as of a head tied to the embeddings, belongs to the first.
    """
    own = dict(model.named_parameters())
    layers = layer_names(model, [own[name] for name in names])
    found: dict[str, list[str]] = {}
    for layer, name in zip(layers, names, strict=True):
        found.setdefault(layer.removesuffix(".base_layer"), []).append(name)
    return found


def squared(part: Tensor) -> float:
    """‖part‖²."""
    return float(torch.linalg.vector_norm(part)) ** 2
