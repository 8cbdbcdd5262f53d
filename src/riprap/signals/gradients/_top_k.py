"""TopK cosine: gradient conflict over the coordinates that alignment changed most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from riprap._distributed import has_sharded_parameters
from riprap.errors import ConfigError
from riprap.signals._base import ProbeView, Signal, StepView, not_run, not_run_without_losses
from riprap.types import RUN, Reading

K = 1000

Coordinates = list[tuple[int, Tensor]]  # index of a tensor, and of its elements, flattened


def top_coordinates(left: Sequence[Tensor], right: Sequence[Tensor], k: int) -> Coordinates:
    """Return the k coordinates where |left − right| is largest, over all tensors together.

    Args:
        left, right: tensors of equal shapes.
        k: capped at the number of elements.
    """
    sizes, places, owners = [], [], []
    for index, (a, b) in enumerate(zip(left, right, strict=True)):
        gaps = (a.detach().float() - b.detach().to(a.device).float()).abs().reshape(-1)
        largest = gaps.topk(min(k, len(gaps)))
        sizes.append(largest.values.cpu())
        places.append(largest.indices.cpu())
        owners.append(torch.full((len(largest.values),), index))
    size, place, owner = (torch.cat(parts) for parts in (sizes, places, owners))
    chosen = size.topk(min(k, len(size))).indices
    place, owner = place[chosen], owner[chosen]
    return [(i, place[owner == i].to(left[i].device)) for i in owner.unique().tolist()]


def values_at(vector: Sequence[Tensor], coordinates: Coordinates) -> Tensor:
    """Return the vector's values at the coordinates, shape (k,), in float64 on the CPU."""
    parts = [vector[i].detach().reshape(-1)[place] for i, place in coordinates]
    return torch.cat([part.double().cpu() for part in parts])


class TopKCosine(Signal):
    """Cosine cos(g, g_b) over the k coordinates where abs(θ_pre − θ_aligned) is largest.

    θ_aligned is the model before the first step. Source: 2604.17215, eq. 9, k = 1000. Costs the
    loss gradients, and at each step a gather of k numbers per behavior.

    Args:
        before: parameters before alignment, by name as in `model.named_parameters()`: a base
            model's state dict. Without it the signal is `NOT_RUN`.
        k: number of coordinates, capped at the number of parameters.

    Raises (at the start):
        ConfigError: a trained parameter is missing in `before` or has another shape there,
            `before` equals the model's weights, or the model is sharded over ranks.
    """

    name = "cosine_topk"
    per_parameter = True
    needs_loss_gradient = True

    def __init__(self, before: Mapping[str, Tensor] | None = None, k: int = K) -> None:
        if k < 1:
            raise ConfigError(f"TopKCosine(k={k}): at least one coordinate is needed")
        self.before = before
        self.k = k
        self.coordinates: Coordinates = []

    def start(self, view: ProbeView) -> None:
        """Choose the coordinates."""
        if self.before is None:
            return
        if has_sharded_parameters(view.model):
            raise ConfigError(
                "TopKCosine does not support a model sharded over ranks: leave the signal out"
            )
        names = {id(parameter): name for name, parameter in view.model.named_parameters()}
        earlier = [_counterpart(self.before, names[id(p)], p) for p in view.parameters]
        self.coordinates = top_coordinates(view.parameters, earlier, self.k)
        current = values_at(view.parameters, self.coordinates)
        if torch.equal(current, values_at(earlier, self.coordinates)):
            raise ConfigError(
                "TopKCosine(before=...) equals the model's current weights: give the weights from "
                "before alignment"
            )
        self.before = {}  # only the coordinates are needed from here on

    def state_dict(self) -> dict[str, Any]:
        """Return the coordinates; the weights before alignment are no longer needed."""
        return {"coordinates": [list(pair) for pair in self.coordinates]}

    def load_state_dict(self, state: dict[str, Any], parameters: list[Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.coordinates = [(index, place) for index, place in state["coordinates"]]
        self.before = {} if self.coordinates else None

    def on_gradient(self, view: StepView) -> list[Reading]:
        """Return one reading for each behavior with losses."""
        if view.gradient is None or not self.coordinates:
            return []
        task = values_at(view.gradient, self.coordinates)
        readings = []
        stack = view.protected_gradients.loss_gradients
        for name in stack.names:
            own = values_at(stack.vector(name, view.gradient), self.coordinates)
            norms = float(task.norm() * own.norm())
            value = float(task @ own) / norms if norms else float("nan")
            readings.append(Reading.of(view.step, name, self.name, value, "cosine"))
        return readings

    def on_probe_evaluation(self, view: ProbeView) -> list[Reading]:
        """Return `NOT_RUN` readings at the start where the signal cannot be read."""
        if self.before is None:
            reason = "no weights from before alignment: give TopKCosine(before=base.state_dict())"
            return [not_run(0, RUN, self.name, reason)] * (view.step == 0)
        return not_run_without_losses(view, self.name)


def _counterpart(before: Mapping[str, Tensor], name: str, parameter: Tensor) -> Tensor:
    earlier = before.get(name)
    if earlier is None or earlier.shape != parameter.shape:
        shape = "no entry" if earlier is None else f"shape {tuple(earlier.shape)}"
        raise ConfigError(
            f"TopKCosine(before=...) has {shape} for the trained parameter {name!r} of shape "
            f"{tuple(parameter.shape)}: give the base model's state_dict()"
        )
    return earlier
