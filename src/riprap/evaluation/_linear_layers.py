"""What goes into linear layers, and what comes back to them, while probes are read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from riprap._distributed import raise_on_all_ranks
from riprap.behaviors import Behavior
from riprap.errors import BehaviorError
from riprap.evaluation._isolation import no_trace
from riprap.evaluation._probe_pass import measure


@dataclass(frozen=True)
class LinearLayer:
    """A layer that multiplies its input by a trained weight.

    Attributes:
        name: as in `model.named_modules()`; the first, where several layers share the weight.
        modules: those that use the weight.
        transposed: whether the weight is (inputs, outputs), as in transformers' Conv1D, and not
            (outputs, inputs).
    """

    name: str
    modules: tuple[nn.Module, ...]
    transposed: bool

    @property
    def expands_adapter(self) -> bool:
        """Whether it is the second layer, B, of a LoRA."""
        return "lora_B" in self.name.split(".")


@dataclass
class Moments:
    """Second moments of what the layers read and what was sent back to them, by parameter.

    Attributes:
        inputs: Σ x xᵀ over positions, shape (inputs, inputs).
        errors: Σ e eᵀ with e the gradient of the margins' sum in the output, (outputs, outputs).
    """

    inputs: dict[int, Tensor] = field(default_factory=dict)
    errors: dict[int, Tensor] = field(default_factory=dict)


def linear_layers(model: nn.Module, parameters: Sequence[Tensor]) -> dict[int, LinearLayer]:
    """Linear layers whose weight is among `parameters`, by its place there."""
    from transformers.pytorch_utils import Conv1D

    places = {id(parameter): at for at, parameter in enumerate(parameters)}
    found: dict[int, LinearLayer] = {}
    for name, module in model.named_modules():
        at = places.get(id(getattr(module, "weight", None)))
        if at is None or not isinstance(module, nn.Linear | Conv1D):
            continue
        first = found.get(at, LinearLayer(name, (), isinstance(module, Conv1D)))
        found[at] = LinearLayer(first.name, (*first.modules, module), first.transposed)
    return found


def layer_moments(
    behavior: Behavior, model: nn.Module, layers: Mapping[int, LinearLayer], errors: bool = False
) -> Moments:
    """One pass over a behaviour's probes, with a backward pass if `errors` are asked for.

    Padding is left out where the model is given an `attention_mask` of shape (rows, positions). A
    layer that no probe runs is missing from the result. Moments are on the layers' devices, in at
    least float32.

    Raises:
        BehaviorError: errors were asked for, and the margin is detached from the graph.
    """
    watch = _Watch(errors)
    with torch.inference_mode(False), torch.set_grad_enabled(errors), no_trace(model):
        handles = [model.register_forward_pre_hook(watch.model, with_kwargs=True)]
        handles += [
            module.register_forward_hook(partial(watch.layer, at))
            for at, layer in layers.items()
            for module in layer.modules
        ]
        try:
            with raise_on_all_ranks(model):
                margins = measure(behavior, model).values
        finally:
            for handle in handles:
                handle.remove()
        if errors:
            if not margins.requires_grad:
                raise BehaviorError(
                    f"behaviour {behavior.name!r} has no errors to send back; give it a margin "
                    "attached to the graph"
                )
            watch.send_back(margins.sum())
    return watch.moments


class _Watch:
    def __init__(self, errors: bool) -> None:
        self.moments, self._errors = Moments(), errors
        self._mask: Tensor | None = None
        self._outputs: list[tuple[int, Tensor]] = []

    def model(self, module: nn.Module, arguments: Any, named: Any) -> None:
        given = inspect.signature(module.forward).bind(*arguments, **named).arguments
        mask = given.get("attention_mask", named.get("attention_mask"))
        self._mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def layer(self, at: int, _module: nn.Module, inputs: Any, output: Tensor) -> None:
        _add(self.moments.inputs, at, self._counted(inputs[0].detach()))
        if self._errors and output.requires_grad:
            self._outputs.append((at, output))

    def _counted(self, inputs: Tensor) -> Tensor:
        """Rows that are no padding, shape (positions, d)."""
        mask, rows = self._mask, len(inputs)
        positions = inputs.shape[1] if inputs.dim() == 3 else 0
        # The mask also spans what a cache holds; a head may be given the last positions only.
        if mask is not None and len(mask) == rows and mask.shape[1] >= positions > 0:
            return inputs[mask[:, -positions:].to(inputs.device).bool()]
        return inputs.reshape(-1, inputs.shape[-1])

    def send_back(self, total: Tensor) -> None:
        tensors = [output for _, output in self._outputs]
        if not tensors:
            return
        found = torch.autograd.grad(total, tensors, allow_unused=True)
        for (at, _), error in zip(self._outputs, found, strict=True):
            if error is not None:
                _add(self.moments.errors, at, error.reshape(-1, error.shape[-1]))


def _add(moments: dict[int, Tensor], at: int, rows: Tensor) -> None:
    rows = rows.float() if rows.dtype.itemsize < 4 else rows
    moment = rows.T @ rows
    moments[at] = moments[at] + moment if at in moments else moment
