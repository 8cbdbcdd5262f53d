"""The linear path from a model to its reference, in place: over weights, or over LoRA scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from riprap.diagnosis._weight_sources import (
    NameFilter,
    Reference,
    Weights,
    all_names,
    interpolate_,
    matching_names,
    named_weights,
    restore_weights,
)
from riprap.errors import ConfigError
from riprap.evaluation import layer_names
from riprap.linalg import norm, upcast


class WeightPath(Protocol):
    """The linear path from the model (α = 0) to its reference (α = 1)."""

    names: list[str]  # weights that can move, as in `model.named_parameters()`

    def set_alpha(self, alpha: float, names: Sequence[str] | None = None) -> None:
        """Move the named weights to α; None: all weights."""

    def delta(self, name: str) -> tuple[Tensor, Tensor]:
        """Return θ₀ and θ − θ₀ of a weight, in at least float32, whatever the current α is."""


class _DensePath:
    def __init__(self, model: nn.Module, start: Weights, end: Weights, names: list[str]) -> None:
        self.model, self.start, self.end, self.names = model, start, end, names

    def set_alpha(self, alpha: float, names: Sequence[str] | None = None) -> None:
        chosen = self.names if names is None else list(names)
        interpolate_(self.model, self.start, self.end, alpha, chosen)

    def delta(self, name: str) -> tuple[Tensor, Tensor]:
        reference = upcast(self.end[name].detach())
        return reference, upcast(self.start[name].detach()).to(reference.device) - reference


class _LoraScalePath:
    def __init__(self, layers: dict[str, Any]) -> None:
        self.layers, self.names = layers, list(layers)
        self.scales = {name: dict(layer.scaling) for name, layer in layers.items()}

    def set_alpha(self, alpha: float, names: Sequence[str] | None = None) -> None:
        for name in self.names if names is None else names:
            for adapter, scale in self.scales[name].items():
                # At α = 0 the original object, so that its type is unchanged too.
                new = scale if alpha == 0 else (1 - alpha) * scale
                self.layers[name].scaling[adapter] = new

    def delta(self, name: str) -> tuple[Tensor, Tensor]:
        layer, current = self.layers[name], dict(self.layers[name].scaling)
        layer.scaling.update(self.scales[name])
        try:
            active = [adapter for adapter in layer.active_adapters if adapter in layer.scaling]
            deltas = [layer.get_delta_weight(adapter) for adapter in active]
        finally:
            layer.scaling.update(current)
        return upcast(layer.get_base_layer().weight.detach()), upcast(sum(deltas).detach())


@contextmanager
def path_to_reference(
    model: nn.Module,
    reference: Reference,
    weights_on_disk: Weights | None = None,
    name_filter: NameFilter = all_names,
) -> Iterator[WeightPath]:
    """Yield the path to the reference; on exit the model is bit by bit what it was.

    Only parameters of a reference model are used; buffers stay those of `model`.

    Args:
        reference: a model or weights; None: `model` without its LoRA adapters, which the path
            reaches by scaling them down.
        weights_on_disk: see `restore_weights`; not used for adapters.
        name_filter: which weights move, by name.

    Raises:
        ConfigError: no weight that could move, weights of another model, or adapters that are not
            removed by a scale of 0.
    """
    with ExitStack() as stack:
        path: WeightPath
        if reference is None:
            path = _LoraScalePath({n: x for n, x in _lora_layers(model).items() if name_filter(n)})
            stack.callback(path.set_alpha, 0.0)
        else:
            weights = named_weights(reference)
            names = matching_names(model, weights, name_filter)
            original = stack.enter_context(restore_weights(model, weights_on_disk))
            path = _DensePath(model, original, weights, names)
        if not path.names:
            raise ConfigError("`name_filter` accepts none of the model's weights")
        yield path


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    """LoRA layers by the name of the weight that each adapts."""
    if not hasattr(model, "disable_adapter"):
        raise ConfigError(
            "no reference was given, and the model has no adapter to scale down: pass the model "
            "before training, or its weights"
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers: dict[str, Any] = {}
    for name, module in model.named_modules():
        if hasattr(module, "original_module"):
            raise ConfigError(
                f"{name} was trained in full beside the adapters, and scaling does not undo that: "
                "pass the weights before training"
            )
        if not hasattr(module, "get_base_layer") or not hasattr(module, "active_adapters"):
            continue
        layer: Any = module
        if why := _why_not_scalable(layer):
            raise ConfigError(f"the adapter of {name} cannot be scaled down: {why}")
        layers[names[id(layer.get_base_layer().weight)]] = layer
    if not layers:
        raise ConfigError("none of the model's adapters can be scaled down")
    return layers


def _why_not_scalable(layer: Any) -> str:
    """Reason why a scale of 0 does not give the base layer; empty if it does."""
    is_lora = hasattr(layer, "scaling") and hasattr(layer, "lora_A")
    if not is_lora or not hasattr(layer.get_base_layer(), "weight"):
        return "it is not a LoRA of a weight; pass the weights before training"
    if getattr(layer, "lora_variant", None) or len(getattr(layer, "lora_magnitude_vector", ())):
        return "a DoRA or another variant at scale 0 is not its base; pass the weights before"
    if layer.merged:
        return "it is merged into its weight; unmerge it first"
    return "it is disabled; enable it first" if layer.disable_adapters else ""


def names_by_layer(model: nn.Module, names: Sequence[str]) -> dict[str, list[str]]:
    """Group weight names by layer, from the embeddings up; a shared weight is in the first."""
    parameters = dict(model.named_parameters())
    layers = layer_names(model, [parameters[name] for name in names])
    groups: dict[str, list[str]] = {}
    for layer, name in zip(layers, names, strict=True):
        groups.setdefault(layer.removesuffix(".base_layer"), []).append(name)
    return groups


def squared_norm(tensor: Tensor) -> float:
    """Compute ‖tensor‖²."""
    return float(norm([tensor])) ** 2
