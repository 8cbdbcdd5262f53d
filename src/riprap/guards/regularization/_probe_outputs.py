"""Margins, logits and layer outputs of one pass over a behavior's probes, attached to the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from riprap._distributed import raise_on_all_ranks
from riprap.behaviors import Behavior, end_aligned, in_prefix_pass, logits_of
from riprap.errors import ConfigError
from riprap.evaluation import compute_margins
from riprap.linalg import upcast
from riprap.selection import IGNORE_INDEX


@dataclass
class ProbeOutputs:
    """Results of one pass over a behavior's probes; lists have one tensor for each call."""

    margins: Tensor  # (n_probes,)
    logits: list[Tensor] = field(default_factory=list)  # (rows, [T,] vocabulary)
    layer_outputs: list[Tensor] = field(default_factory=list)  # (rows, [T,] d)


def last_positions(parts: list[Tensor]) -> Tensor:
    """Return the last position of each row of all calls, shape (rows, d), in at least float32."""
    return upcast(torch.cat([part[:, -1] if part.dim() == 3 else part for part in parts]))


def run_probes(guard: str, behavior: Behavior, model: nn.Module, layer: str = "") -> ProbeOutputs:
    """Run one pass over a behavior's probes; call it inside `preserve_training_state`.

    Args:
        guard: name of the calling guard, for error messages.
        layer: full name of a module whose output is recorded too.

    Raises:
        ConfigError: the margin does not call the model, or not the layer.
    """
    outputs = ProbeOutputs(torch.empty(0))

    def record_logits(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if not in_prefix_pass():
            outputs.logits.append(end_aligned(logits_of(output)))

    def record_layer_output(_module: nn.Module, _inputs: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if isinstance(tensor, Tensor) and tensor.dim() in (2, 3) and not in_prefix_pass():
            outputs.layer_outputs.append(end_aligned(tensor))

    handles = [model.register_forward_hook(record_logits)]
    if layer:
        handles.append(model.get_submodule(layer).register_forward_hook(record_layer_output))
    try:
        with raise_on_all_ranks(model):
            outputs.margins = compute_margins(behavior, model).values
    finally:
        for handle in handles:
            handle.remove()
    if not outputs.logits or (layer and not outputs.layer_outputs):
        what = f"layer {layer}" if outputs.logits else "the model"
        raise ConfigError(
            f"guard {guard}: the margin of behavior {behavior.name!r} does not run {what}, so its "
            "output cannot be read; leave the behavior out"
        )
    return outputs


def counted_positions(guard: str, batch: Mapping[str, Any], logits: Tensor) -> Tensor:
    """Return the mask of the counted positions, shape (n, T); raise a ConfigError if empty.

    They are those that predict a label if there are `labels`, else those of `attention_mask`, else
    all.

    Args:
        guard: name of the calling guard, for error messages.
    """
    mask = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    if batch.get("attention_mask") is not None:
        mask &= batch["attention_mask"].bool()
    if batch.get("labels") is not None:
        has_label = batch["labels"][:, 1:] != IGNORE_INDEX
        mask &= torch.nn.functional.pad(has_label, (0, 1), value=False)
    if not bool(mask.any()):
        raise ConfigError(
            f"guard {guard}: a batch has no counted position; give labels other than −100, or "
            "a mask"
        )
    return mask
