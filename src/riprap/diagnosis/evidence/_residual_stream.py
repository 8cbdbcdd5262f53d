"""The residual stream at the last prompt token, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from riprap import evaluation as probing
from riprap.behaviors import Behavior, TokenBatch, last_logits
from riprap.errors import BehaviorError, ConfigError
from riprap.evaluation import capture_outputs, last_rows, layer_stacks

ROWS_PER_PASS = 32  # prompts at a time: bounds the memory of a pass


def residual_layers(model: nn.Module, layers: Sequence[str] | None = None) -> list[str]:
    """Modules whose output is the residual stream.

    Args:
        layers: names, or ends of names that fit one module; None: the token embeddings and every
            block of the longest stack.

    Raises:
        ConfigError: nothing was named, and the model has no stack of equal blocks.
        BehaviorError: no module, or several, by a name.
    """
    if layers is not None:
        return [probing.find_layer(model, name) or name for name in layers]
    found = layer_stacks(model)
    if not found:
        raise ConfigError("the model has no list of equal blocks: name its layers")
    stack = max(found, key=lambda name: found[name])
    blocks = [f"{stack}.{index}" for index in range(found[stack])]
    return [*_embedding_layer(model), *blocks]


def _embedding_layer(model: nn.Module) -> list[str]:
    known = getattr(model, "get_input_embeddings", None)
    wanted = known() if known is not None else None
    for name, module in model.named_modules():
        if module is wanted or (wanted is None and isinstance(module, nn.Embedding)):
            return [name]
    return []


def residual_stream(
    model: nn.Module, prompts: Sequence[Sequence[int]], layers: Sequence[str]
) -> dict[str, Tensor]:
    """The stream at each prompt's last token, without a trace.

    Returns:
        by layer, shape (prompts, d), float32 on the CPU.

    Raises:
        BehaviorError: a layer gave something else than a row for each prompt.
    """
    found: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    with torch.inference_mode(False), torch.no_grad(), probing.preserve_training_state(model):
        for at in range(0, len(prompts), ROWS_PER_PASS):
            some = [list(row) for row in prompts[at : at + ROWS_PER_PASS]]
            with capture_outputs(model, layers) as (outputs, _):
                last_logits(model, TokenBatch.pad(some))
            for layer in layers:
                rows = last_rows(outputs[layer], len(some))
                found[layer].append(_require_rows(layer, rows).cpu())
    return {layer: torch.cat(rows) for layer, rows in found.items()}


def behavior_residual_stream(model: nn.Module, behavior: Behavior, layers: Sequence[str]) -> dict[str, Tensor]:
    """The stream where a behaviour's probes end; see `stream`.

    Probes that hold no token ids are read by the behaviour's own margin.
    """
    prompts = behavior.token_rows()
    if prompts is not None:
        return residual_stream(model, prompts, layers)
    seen = probing.evaluate(behavior, model, layers=layers)
    found = {layer: seen.activations.get(layer) for layer in layers}
    return {
        layer: _require_rows(layer, rows if rows is not None and len(rows) == len(seen.margins) else None)
        for layer, rows in found.items()
    }


def _require_rows(layer: str, rows: Tensor | None) -> Tensor:
    if rows is None:
        raise BehaviorError(
            f"layer {layer!r} gives no row for each prompt: name a module that runs once a pass "
            "and puts out a tensor of shape (rows, d) or (rows, T, d)"
        )
    return rows.cpu()
