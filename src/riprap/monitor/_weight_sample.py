"""Some elements of each trained parameter, which tell cheaply whether the weights have changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riprap.linalg import to_local

MAX_ELEMENTS = 1024  # of a parameter; an optimizer's step moves nearly all of its elements
ROUNDING = 4  # in float32; (θ + e) − e and the averages of schedule-free optimizers round
MODE_ROUNDING = 16  # of an optimizer that swaps two sets of weights, in any precision


class WeightSample:
    """Copies of up to `MAX_ELEMENTS` evenly spaced elements of each parameter.

    Costs a read of these elements, and no copy of the parameters.

    Args:
        swaps_weights: the optimizer swaps two sets of weights for evaluation and back, which
            rounds also in half precision.
    """

    def __init__(self, parameters: Sequence[Tensor], swaps_weights: bool = False) -> None:
        self._parameters = list(parameters)
        self._swaps_weights = swaps_weights
        self._pointers: list[int] = []
        self._views: list[Tensor] = []
        self._copies: list[Tensor] = []
        self.take()

    @torch.no_grad()
    def take(self) -> None:
        """Store the elements as they are now."""
        self._refresh_views()
        if [copy.shape for copy in self._copies] != [view.shape for view in self._views]:
            self._copies = [view.clone() for view in self._views]
        elif self._views:
            torch._foreach_copy_(self._copies, self._views)

    @torch.no_grad()
    def has_changed(self) -> bool:
        """Return whether an element differs from the stored one by more than rounding."""
        self._refresh_views()
        if [copy.shape for copy in self._copies] != [view.shape for view in self._views]:
            return True
        on_cpu = all(view.device.type == "cpu" for view in self._views)
        if on_cpu and all(map(torch.equal, self._views, self._copies)):
            return False
        changes = torch._foreach_norm(
            torch._foreach_sub(self._views, self._copies), ord=float("inf")
        )
        device = changes[0].device
        if not any(torch.stack([part.to(device) for part in changes]).tolist()):
            return False
        sizes = torch._foreach_norm(self._copies, ord=float("inf"))
        return any(
            float(change) > self._tolerance(copy.dtype) * float(size)
            for change, size, copy in zip(changes, sizes, self._copies, strict=True)
        )

    def _tolerance(self, dtype: torch.dtype) -> float:
        epsilon = torch.finfo(dtype).eps
        if self._swaps_weights:
            return MODE_ROUNDING * epsilon
        return ROUNDING * epsilon if epsilon < 1e-6 else 0.0

    def _refresh_views(self) -> None:
        """Find the elements anew where a parameter's storage was replaced."""
        parts = [to_local(parameter) for parameter in self._parameters]
        parts = [part for part in parts if part.numel()]
        pointers = [part.data_ptr() for part in parts]
        if pointers != self._pointers:
            self._pointers, self._views = pointers, [elements(part) for part in parts]


def elements(part: Tensor) -> Tensor:
    """Return up to `MAX_ELEMENTS` evenly spaced elements as a view, in the storage's order."""
    part = part.detach()
    if part.is_complex():
        part = torch.view_as_real(part)
    if not part.is_contiguous():
        part = part.permute(sorted(range(part.dim()), key=part.stride, reverse=True))
    flat = part.reshape(-1)  # a view, unless the elements overlap or have gaps
    if len(flat) <= MAX_ELEMENTS:
        return flat
    return flat[:: max(len(flat) // MAX_ELEMENTS, 1)][:MAX_ELEMENTS]


def swaps_weights(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer has two sets of weights, as the schedule-free ones."""
    return callable(getattr(optimizer, "eval", None)) and callable(
        getattr(optimizer, "train", None)
    )
