"""What a model answers and computes on a behaviour's probes, attached to the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from riprap._distributed import raise_on_all_ranks
from riprap.behaviors import Behavior, logits_of, in_prefix_pass
from riprap.errors import ConfigError
from riprap.evaluation import gradient_of, compute_margins, preserve_training_state
from riprap.linalg import Vector


@dataclass
class ProbeOutputs:
    """What one pass over a behaviour's probes gave.

    Attributes:
        margins: shape (n_probes,).
        logits: what the model put out, call by call, shapes (rows, T, vocabulary) or (rows, v).
        outputs: what the layer put out, call by call, shapes (rows, T, d) or (rows, d).
    """

    margins: Tensor
    logits: list[Tensor] = field(default_factory=list)
    layer_outputs: list[Tensor] = field(default_factory=list)


def last_positions(parts: list[Tensor]) -> Tensor:
    """The last position of each row of all calls, shape (rows, d), in at least float32."""
    ends = [part[:, -1] if part.dim() == 3 else part for part in parts]
    return full(torch.cat(ends))


def full(tensor: Tensor) -> Tensor:
    """The tensor in at least float32, attached."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def run_probes(guard: str, behavior: Behavior, model: nn.Module, layer: str = "") -> ProbeOutputs:
    """One pass over a behaviour's probes.

    To be called inside `no_trace`.

    Args:
        guard: name of the guard that asks, for messages.
        layer: full name of a module whose output is wanted too.

    Raises:
        ConfigError: the margin does not call the model itself, or not the layer.
    """
    found = ProbeOutputs(torch.empty(0))

    def keep_logits(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if not in_prefix_pass():
            found.logits.append(logits_of(output))

    def keep_output(_module: nn.Module, _inputs: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if isinstance(tensor, Tensor) and tensor.dim() in (2, 3) and not in_prefix_pass():
            found.layer_outputs.append(tensor)

    handles = [model.register_forward_hook(keep_logits)]
    if layer:
        handles.append(model.get_submodule(layer).register_forward_hook(keep_output))
    try:
        with raise_on_all_ranks(model):
            found.margins = compute_margins(behavior, model).values
    finally:
        for handle in handles:
            handle.remove()
    for what, parts in {"the model": found.logits, f"layer {layer}": found.layer_outputs}.items():
        if not parts and (what == "the model" or layer):
            raise ConfigError(
                f"guard {guard}: the margin of behaviour {behavior.name!r} does not run {what}, "
                "so that nothing can be read there: leave the behaviour out"
            )
    return found


def taken(
    value: Callable[[], Tensor], model: nn.Module, parameters: list[Tensor]
) -> tuple[float, Vector | None]:
    """A scalar and its gradient, in evaluation mode, leaving no trace.

    Args:
        value: a scalar attached to the graph.
    """
    with torch.inference_mode(False), torch.enable_grad(), preserve_training_state(model):
        found = value()
        return float(found.detach()), gradient_of(found, parameters)
