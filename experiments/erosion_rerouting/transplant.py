"""Transplants: parts of the start put into the model that has drifted, for one pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from experiments.erosion_rerouting.tasks import LAYERS, READOUT
from riprap.behaviors import Behavior
from riprap.diagnosis import _weight_sources as weights
from riprap.evaluation import evaluate

ROUTES = (
    *(f"{layer[-1]} {part}" for layer in LAYERS for part in ("held", "rest")),
    "0 elsewhere",
    "readout",
)


def transplants(
    behavior: Behavior, model: nn.Module, start: nn.Module, held: Mapping[str, Tensor]
) -> dict[str, float]:
    """The mean margin with each part put back to what it is in the start.

    `0 held` and `0 rest`: layer 0 at the last position, inside and outside of the held directions;
    `1 held`, `1 rest` the same of layer 1; `0 elsewhere`: layer 0 at all other positions, which
    layer 1 reads; `readout`: final norm and output matrix.

    Args:
        held: by layer an orthonormal basis, shape (k, d).
    """
    found = {}
    for layer in LAYERS:
        there = _outputs(behavior, start, layer)
        inside = held[layer].T @ held[layer]
        outside = torch.eye(len(inside)) - inside
        with _put(model, layer, there, inside, slice(-1, None)):
            found[f"{layer[-1]} held"] = _margin(behavior, model)
        with _put(model, layer, there, outside, slice(-1, None)):
            found[f"{layer[-1]} rest"] = _margin(behavior, model)
        if layer == LAYERS[0]:
            with _put(model, layer, there, inside + outside, slice(None, -1)):
                found["0 elsewhere"] = _margin(behavior, model)
    names = [name for name, _ in model.named_parameters() if name.startswith(READOUT)]
    with weights.restore_weights(model) as here:
        weights.interpolate_(model, here, dict(start.named_parameters()), 1.0, names)
        found["readout"] = _margin(behavior, model)
    return found


def _margin(behavior: Behavior, model: nn.Module) -> float:
    return float(evaluate(behavior, model).margins.mean())


def _outputs(behavior: Behavior, model: nn.Module, layer: str) -> Tensor:
    """What a layer puts out at all positions, shape (probes, T, d)."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.append(_tensor(output).detach())

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        evaluate(behavior, model)
    finally:
        handle.remove()
    return torch.cat(seen)


@contextmanager
def _put(
    model: nn.Module, layer: str, there: Tensor, onto: Tensor, positions: slice
) -> Iterator[None]:
    """The layer puts out `there` at some positions, as far as the projection `onto` reaches."""

    def replace(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        own = _tensor(output).clone()
        own[:, positions] += (there - own)[:, positions] @ onto
        return (own, *output[1:]) if isinstance(output, tuple) else own

    handle = model.get_submodule(layer).register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _tensor(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
