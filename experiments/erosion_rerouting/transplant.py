"""Transplants: parts of the start in the drifted model, for one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from experiments.erosion_rerouting.tasks import LAYERS, READOUT
from riprap.behaviors import Behavior
from riprap.diagnosis import interpolate_, restore_weights
from riprap.evaluation import evaluate

ROUTES = (
    *(f"{layer[-1]} {part}" for layer in LAYERS for part in ("held", "rest")),
    "0 elsewhere",
    "readout",
)


def transplants(
    behavior: Behavior, model: nn.Module, start: nn.Module, held: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return the mean margin with each part restored to the start's.

    `0 held` and `0 rest`: layer 0 at the last position, inside and outside the anchored
    directions; `1 held`, `1 rest`: the same for layer 1; `0 elsewhere`: layer 0 at all other
    positions, which layer 1 reads; `readout`: final norm and output matrix.

    Args:
        held: by layer an orthonormal basis, shape (k, d).
    """
    margins = {}
    for layer in LAYERS:
        outputs = _outputs(behavior, start, layer)
        inside = held[layer].T @ held[layer]
        outside = torch.eye(len(inside)) - inside
        with _replace(model, layer, outputs, inside, slice(-1, None)):
            margins[f"{layer[-1]} held"] = _margin(behavior, model)
        with _replace(model, layer, outputs, outside, slice(-1, None)):
            margins[f"{layer[-1]} rest"] = _margin(behavior, model)
        if layer == LAYERS[0]:
            with _replace(model, layer, outputs, inside + outside, slice(None, -1)):
                margins["0 elsewhere"] = _margin(behavior, model)
    names = [name for name, _ in model.named_parameters() if name.startswith(READOUT)]
    with restore_weights(model) as trained:
        interpolate_(model, trained, dict(start.named_parameters()), 1.0, names)
        margins["readout"] = _margin(behavior, model)
    return margins


def _margin(behavior: Behavior, model: nn.Module) -> float:
    return float(evaluate(behavior, model).margins.mean())


def _outputs(behavior: Behavior, model: nn.Module, layer: str) -> Tensor:
    """Return the output of a layer at all positions, shape (probes, T, d)."""
    outputs: list[Tensor] = []

    def append(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(_tensor(output).detach())

    handle = model.get_submodule(layer).register_forward_hook(append)
    try:
        evaluate(behavior, model)
    finally:
        handle.remove()
    return torch.cat(outputs)


@contextmanager
def _replace(
    model: nn.Module, layer: str, outputs: Tensor, onto: Tensor, positions: slice
) -> Iterator[None]:
    """Replace a layer's output by `outputs` at some positions, inside the projection `onto`."""

    def replace(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        own = _tensor(output).clone()
        own[:, positions] += (outputs - own)[:, positions] @ onto
        return (own, *output[1:]) if isinstance(output, tuple) else own

    handle = model.get_submodule(layer).register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _tensor(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor
