"""Some elements of each trained parameter, which tell cheaply whether the weights have changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riprap.linalg import to_local

N_RUNS, RUN_LENGTH = 16, 64  # elements of a parameter; an optimizer's step moves nearly all
MAX_ELEMENTS = N_RUNS * RUN_LENGTH
ROUNDING = 4  # in float32; (θ + e) − e and the averages of schedule-free optimizers round
MODE_ROUNDING = 16  # of an optimizer that swaps two sets of weights, in any precision


class WeightSample:
    """Copies of up to `MAX_ELEMENTS` elements of each parameter; see `elements`.

    Costs a read of these elements, and no copy of the parameters.

    Args:
        swaps_weights: the optimizer swaps two sets of weights for evaluation and back, which
            rounds also in half precision.
    """

    def __init__(self, parameters: Sequence[Tensor], swaps_weights: bool = False) -> None:
        self._parameters = list(parameters)
        self._swaps_weights = swaps_weights
        self._pointers: list[int] = []
        self._groups: list[list[Tensor]] = []  # views, by device, type and shape
        self._copies: list[Tensor] = []  # of each group, concatenated
        self.take()

    @torch.no_grad()
    def take(self) -> None:
        """Store the elements as they are now."""
        if self._refresh_views():
            self._copies = [torch.cat(views) for views in self._groups]
            return
        for views, copy in zip(self._groups, self._copies, strict=True):
            torch.cat(views, out=copy)

    @torch.no_grad()
    def has_changed(self) -> bool:
        """Return whether an element differs from the stored one by more than rounding."""
        lengths = [list(map(len, views)) for views in self._groups]
        if self._refresh_views() and lengths != [list(map(len, views)) for views in self._groups]:
            return True
        groups = zip(self._groups, self._copies, strict=True)
        return any(self._differs(views, copy) for views, copy in groups)

    def _differs(self, views: list[Tensor], copy: Tensor) -> bool:
        now = torch.cat(views)
        if torch.equal(now, copy):
            return False
        sizes = [len(view) for view in views]
        pairs = list(zip(now.split(sizes), copy.split(sizes), strict=True))
        changes = torch.stack([(new - old).abs().amax() for new, old in pairs]).tolist()
        largest = torch.stack([old.abs().amax() for _, old in pairs]).tolist()
        tolerance = self._tolerance(copy.dtype)
        return any(
            not change <= tolerance * size for change, size in zip(changes, largest, strict=True)
        )

    def _tolerance(self, dtype: torch.dtype) -> float:
        epsilon = torch.finfo(dtype).eps
        if self._swaps_weights:
            return MODE_ROUNDING * epsilon
        return ROUNDING * epsilon if epsilon < 1e-6 else 0.0

    def _refresh_views(self) -> bool:
        """Find the elements anew if a parameter's storage was replaced; return whether it was."""
        parts = [to_local(parameter) for parameter in self._parameters]
        pointers = [part.data_ptr() for part in parts]
        if pointers == self._pointers:
            return False
        groups: dict[tuple[torch.device, torch.dtype, int], list[Tensor]] = {}
        for part in parts:
            if part.numel():
                view = elements(part)
                groups.setdefault((view.device, view.dtype, view.dim()), []).append(view)
        self._pointers, self._groups = pointers, list(groups.values())
        return True


def elements(part: Tensor) -> Tensor:
    """Return up to `MAX_ELEMENTS` elements as a view: all, or evenly spaced runs, one a row.

    Runs, because single elements would each cost a read of memory. In the storage's order.
    """
    part = part.detach()
    if part.is_complex():
        part = torch.view_as_real(part)
    if not part.is_contiguous():
        part = part.permute(sorted(range(part.dim()), key=part.stride, reverse=True))
    flat = part.reshape(-1)  # a view, unless the elements overlap or have gaps
    if len(flat) <= MAX_ELEMENTS:
        return flat
    gap = (len(flat) - RUN_LENGTH) // (N_RUNS - 1)
    return flat.as_strided((N_RUNS, RUN_LENGTH), (gap, 1))


def swaps_weights(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer has two sets of weights, as the schedule-free ones."""
    return callable(getattr(optimizer, "eval", None)) and callable(
        getattr(optimizer, "train", None)
    )
