"""Gradients in the parameters, without any trace in them, and their sums over chunks of probes.

Gradients are computed by `torch.autograd.grad`, which accumulates nothing and calls no
post-accumulate hook.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riprap.linalg import Vector, densify, is_sharded, upcast


def gradient_of(
    value: Tensor, parameters: Sequence[Tensor], keep_graph: bool = False
) -> Vector | None:
    """Compute ∇ value in `parameters`, with zeros for parameters that it does not depend on.

    Zero too for parameters that require no gradient now. None if it depends on none of them. Sparse
    gradients are returned dense. Call it inside `preserve_training_state`.
    """
    required = [parameter for parameter in parameters if parameter.requires_grad]
    if not value.requires_grad or not required:
        return None
    if any(is_sharded(parameter) for parameter in parameters):
        return _gradient_via_grad(value, parameters)
    found = torch.autograd.grad(value, required, allow_unused=True, retain_graph=keep_graph)
    by_id = {id(parameter): part for parameter, part in zip(required, found, strict=True)}
    return _fill_zeros([by_id.get(id(parameter)) for parameter in parameters], parameters)


def _gradient_via_grad(value: Tensor, parameters: Sequence[Tensor]) -> Vector | None:
    """Compute `gradient_of` through `.grad`: autograd returns None for parameters sharded by FSDP2.

    `preserve_training_state` has saved training's own `.grad`. Every rank has the same probes, so
    FSDP2's mean over ranks is the gradient itself.
    """
    value.backward()  # type: ignore[no-untyped-call]
    gradient = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return _fill_zeros(gradient, parameters)


def _fill_zeros(gradient: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Vector | None:
    if all(part is None for part in gradient):
        return None
    return [
        torch.zeros_like(parameter) if part is None else densify(part.detach())
        for parameter, part in zip(parameters, gradient, strict=True)
    ]


class GradientSum:
    """Sum of gradients, in at least float32.

    One gradient alone is returned as it is. Gradients that are not defined add nothing.
    """

    def __init__(self) -> None:
        self._first: Vector | None = None
        self._total: Vector | None = None

    def add(self, gradient: Vector | None) -> None:
        """Add a gradient, which nothing else may use from now on."""
        if gradient is None:
            return
        if self._first is None:
            self._first = gradient
            return
        if self._total is None:
            self._total = _own(self._first)
        for total, part in zip(self._total, gradient, strict=True):
            total.add_(part)

    def result(self) -> Vector | None:
        """Return the sum in the precision of the gradients; None if there were none."""
        if self._total is None or self._first is None:
            return self._first
        return [part.to(like.dtype) for part, like in zip(self._total, self._first, strict=True)]


def _own(gradient: Vector) -> Vector:
    """Return tensors that can be written: autograd may return one for several parameters."""
    seen: set[int] = set()
    owned = []
    for part in gradient:
        own = upcast(part)
        if own is part and (is_sharded(part) or part.untyped_storage().data_ptr() in seen):
            own = part.clone()
        elif own is part and not part.is_contiguous():
            own = part.contiguous()
        if not is_sharded(own):
            seen.add(own.untyped_storage().data_ptr())
        owned.append(own)
    return owned
