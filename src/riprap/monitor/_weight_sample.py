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
        self._late: _Fetched | None = None
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
    def has_changed(self, late: bool = False) -> bool:
        """Return whether an element differs from the stored one by more than rounding.

        Args:
            late: on an accelerator, return what the last late call found, whose result has arrived
                by now: so nothing waits for the device.
        """
        lengths = [list(map(len, views)) for views in self._groups]
        if self._refresh_views() and lengths != [list(map(len, views)) for views in self._groups]:
            return True
        groups = list(zip(self._groups, self._copies, strict=True))
        if late and any(copy.device.type != "cpu" for copy in self._copies):
            before, device = self._late, self._copies[0].device
            found = torch.stack([self._difference(*group).to(device) for group in groups])
            self._late = _Fetched(found.any())
            return before is not None and before.value()
        return any(self._differs(*group) for group in groups)

    def _differs(self, views: list[Tensor], copy: Tensor) -> bool:
        if copy.device.type == "cpu" and torch.equal(torch.cat(views), copy):
            return False
        return bool(self._difference(views, copy))

    def _difference(self, views: list[Tensor], copy: Tensor) -> Tensor:
        sizes = [len(view) for view in views]
        pairs = list(zip(views, copy.split(sizes), strict=True))
        changes = torch.stack([_change(new, old).amax() for new, old in pairs])
        largest = torch.stack([old.nan_to_num(0.0).abs().amax() for _, old in pairs])
        return ~(changes <= self._tolerance(copy.dtype) * largest).all()

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


class _Fetched:
    """A flag on its way from an accelerator."""

    def __init__(self, flag: Tensor) -> None:
        self._host = torch.empty_like(flag, device="cpu", pin_memory=True)
        self._host.copy_(flag, non_blocking=True)
        self._arrived = torch.Event(flag.device)
        self._arrived.record()

    def value(self) -> bool:
        self._arrived.synchronize()
        return bool(self._host)


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


def _change(new: Tensor, old: Tensor) -> Tensor:
    """Return the size of each change; 0 where both are NaN or the same infinity."""
    same = (new == old) | (new.isnan() & old.isnan())
    return (new - old).abs().masked_fill(same, 0.0)
