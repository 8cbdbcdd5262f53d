"""Directions with which the gradients of rows are multiplied.

Each score of a row is linear in the row's gradient, so it is the product with one direction: the
rows' gradients are computed once for all scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from riprap.linalg import Vector, norm


def harm_direction(gradient: Vector, scales: Vector) -> Vector:
    """Return s · h: its product with ∇L_i is the predicted fall of the mean margin."""
    return [part * scale for part, scale in zip(gradient, scales, strict=True)]


def by_module(direction: Vector, gradient: Vector, names: Sequence[str]) -> Vector:
    """Divide the part of each module by the norm of the module's part of h.

    The product is the row's update projected on h, module by module, and summed: a module with
    large gradients counts no more than others.
    """
    modules: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        modules.setdefault(module_of(name), []).append(index)
    scaled = list(direction)
    for indices in modules.values():
        length = float(norm([gradient[index] for index in indices]))
        for index in indices:
            scaled[index] = direction[index] / length if length > 0 else direction[index] * 0
    return scaled


def module_of(name: str) -> str:
    """Return the module of a parameter; the matrices of an adapter belong to the adapted layer."""
    return name.split(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0]


def sqsd_direction(parameters: Mapping[str, Tensor], danger: Vector, safety: Vector) -> Vector:
    """Return the direction of a score like SQSD (2605.04572).

    SQSD takes the update of a row by one step of plain descent, for an adapted layer
    −(∇_B L_i · A + B · ∇_A L_i); projects it on the unit vector of a danger direction and of a
    safety direction, layer by layer; and sums the differences. In the paper the directions are the
    weights of adapters, trained on harmful and on safe answers. Here there are no such adapters:
    danger is one step of descent on the mean margin, safety one step on the behavior's own answers.

    Args:
        parameters: trainable parameters, by name, in the order of every vector.
        danger, safety: steps in these parameters.
    """
    tensors, index = list(parameters.values()), {name: at for at, name in enumerate(parameters)}
    result: Vector = [_unit(s) - _unit(d) for s, d in zip(safety, danger, strict=True)]
    for name, at in index.items():
        other = index.get(name.replace(".lora_A.", ".lora_B."))
        if ".lora_A." in name and other is not None:
            a, b = tensors[at].detach(), tensors[other].detach()
            parts = [vector[other] @ a + b @ vector[at] for vector in (danger, safety)]
            difference = _unit(parts[0]) - _unit(parts[1])
            result[at], result[other] = -(b.T @ difference), -(difference @ a.T)
    return result


def _unit(part: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(part)
    return part / length if float(length) > 0 else torch.zeros_like(part)
