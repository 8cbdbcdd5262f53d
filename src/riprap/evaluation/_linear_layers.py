"""Second moments of the inputs and output gradients of linear layers, over the probes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from riprap._distributed import raise_on_all_ranks
from riprap.behaviors import Behavior, in_comparison, token_mask
from riprap.errors import BehaviorError
from riprap.evaluation._chunks import Chunk, run_in_chunks
from riprap.evaluation._isolation import preserve_training_state
from riprap.evaluation._probe_pass import compute_margins


@dataclass(frozen=True)
class LinearLayer:
    """A layer that multiplies its input by a trained weight.

    Attributes:
        name: as in `model.named_modules()`; the first name where layers share the weight.
        modules: the modules that use the weight.
        transposed: whether the weight has shape (inputs, outputs), as in transformers' Conv1D,
            instead of (outputs, inputs).
    """

    name: str
    modules: tuple[nn.Module, ...]
    transposed: bool

    @property
    def expands_adapter(self) -> bool:
        """Return whether the layer is the second one, B, of a LoRA adapter."""
        return "lora_B" in self.name.split(".")


@dataclass
class LayerMoments:
    """Second moments of the layers' inputs and output gradients, by parameter index.

    Attributes:
        inputs: Σ x xᵀ over positions, shape (inputs, inputs).
        errors: Σ e eᵀ with e the gradient of the margins' sum in the layer's output, shape
            (outputs, outputs).
    """

    inputs: dict[int, Tensor] = field(default_factory=dict)
    errors: dict[int, Tensor] = field(default_factory=dict)


def linear_layers(model: nn.Module, parameters: Sequence[Tensor]) -> dict[int, LinearLayer]:
    """Return the linear layers whose weight is among `parameters`, by its index there."""
    transformers = sys.modules.get("transformers.pytorch_utils")  # imported if a layer is of it
    conv1d: Any = () if transformers is None else (transformers.Conv1D,)
    linear_types: Any = (nn.Linear, *conv1d)
    indices = {id(parameter): at for at, parameter in enumerate(parameters)}
    layers: dict[int, LinearLayer] = {}
    for name, module in model.named_modules():
        at = indices.get(id(getattr(module, "weight", None)))
        if at is None or not isinstance(module, linear_types):
            continue
        first = layers.get(at, LinearLayer(name, (), isinstance(module, conv1d)))
        layers[at] = LinearLayer(first.name, (*first.modules, module), first.transposed)
    return layers


def layer_moments(
    behavior: Behavior, model: nn.Module, layers: Mapping[int, LinearLayer], errors: bool = False
) -> LayerMoments:
    """Compute moments in a pass over a behavior's probes.

    Padding is left out where the model gets an `attention_mask` of shape (rows, positions). A
    layer that no probe uses is missing from the result. Moments are on the layers' devices, in at
    least float32.

    Args:
        errors: also run a backward pass, and compute `LayerMoments.errors`.

    Raises:
        BehaviorError: `errors` is set and the margin is detached from the graph.
    """
    total = LayerMoments()

    def run(chunk: Chunk) -> None:
        moments = _chunk_moments(chunk.parts[0].behavior(), model, layers, errors)
        for own, new in ((total.inputs, moments.inputs), (total.errors, moments.errors)):
            for at, moment in new.items():
                own[at] = own[at] + moment if at in own else moment

    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(errors),
        preserve_training_state(model),
    ):
        run_in_chunks([behavior], model, errors, run)
    return total


def _chunk_moments(
    behavior: Behavior, model: nn.Module, layers: Mapping[int, LinearLayer], errors: bool
) -> LayerMoments:
    recorder = _ActivationRecorder(errors)
    handles = [model.register_forward_pre_hook(recorder.on_model, with_kwargs=True)]
    handles += [
        module.register_forward_hook(partial(recorder.on_layer, at))
        for at, layer in layers.items()
        for module in layer.modules
    ]
    try:
        with raise_on_all_ranks(model):
            margins = compute_margins(behavior, model).values
    finally:
        for handle in handles:
            handle.remove()
    if errors:
        if not margins.requires_grad:
            raise BehaviorError(
                f"behavior {behavior.name!r}: its margins are detached from the graph, so "
                "there is no output gradient; give it a margin attached to the graph"
            )
        recorder.backward_errors(margins.sum())
    return recorder.moments


class _ActivationRecorder:
    """Hooks that add up the moments of one pass."""

    def __init__(self, errors: bool) -> None:
        self.moments, self._errors = LayerMoments(), errors
        self._mask: Tensor | None = None
        self._outputs: list[tuple[int, Tensor]] = []

    def on_model(self, module: nn.Module, arguments: Any, named: Any) -> None:
        bound = inspect.signature(module.forward).bind(*arguments, **named).arguments
        mask = bound.get("attention_mask", named.get("attention_mask"))
        mask = token_mask() if isinstance(mask, Tensor) and mask.dim() == 4 else mask
        self._mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def on_layer(self, at: int, _module: nn.Module, inputs: Any, output: Tensor) -> None:
        if in_comparison():
            return
        _add(self.moments.inputs, at, self._unpadded(inputs[0].detach()))
        if self._errors and output.requires_grad:
            self._outputs.append((at, output))

    def _unpadded(self, inputs: Tensor) -> Tensor:
        """Return the rows that are not padding, shape (positions, d)."""
        mask, rows = self._mask, len(inputs)
        positions = inputs.shape[1] if inputs.dim() == 3 else 0
        # The mask also covers cached tokens; a head may get only the last positions.
        if mask is not None and len(mask) == rows and mask.shape[1] >= positions > 0:
            return inputs[mask[:, -positions:].to(inputs.device).bool()]
        return inputs.reshape(-1, inputs.shape[-1])

    def backward_errors(self, total: Tensor) -> None:
        """Add the moments of the gradients of `total` in the recorded outputs."""
        tensors = [output for _, output in self._outputs]
        if not tensors:
            return
        gradients = torch.autograd.grad(total, tensors, allow_unused=True)
        for (at, _), error in zip(self._outputs, gradients, strict=True):
            if error is not None:
                _add(self.moments.errors, at, error.reshape(-1, error.shape[-1]))


def _add(moments: dict[int, Tensor], at: int, rows: Tensor) -> None:
    rows = rows.float() if rows.dtype.itemsize < 4 else rows
    moment = rows.T @ rows
    moments[at] = moments[at] + moment if at in moments else moment
