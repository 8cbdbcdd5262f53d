"""The residual stream at the last prompt token, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from riprap import evaluation
from riprap.behaviors import Behavior, TokenBatch, last_logits
from riprap.errors import BehaviorError, ConfigError

ROWS_PER_PASS = 32  # prompts; limits the memory of a pass


def residual_layers(model: nn.Module, layers: Sequence[str] | None = None) -> list[str]:
    """Return the modules whose output is the residual stream.

    Args:
        layers: names or their endings; None: the token embeddings and the longest stack's blocks.
    """
    if layers is not None:
        return [evaluation.find_layer(model, name) or name for name in layers]
    stacks = evaluation.layer_stacks(model)
    if not stacks:
        raise ConfigError("the model has no list of equal blocks: pass the names of its layers")
    longest = max(stacks, key=lambda name: stacks[name])
    blocks = [f"{longest}.{index}" for index in range(stacks[longest])]
    return [*_embedding_layer(model), *blocks]


def _embedding_layer(model: nn.Module) -> list[str]:
    get_embeddings = getattr(model, "get_input_embeddings", None)  # transformers' models have it
    embeddings = get_embeddings() if get_embeddings is not None else None
    for name, module in model.named_modules():
        if module is embeddings or (embeddings is None and isinstance(module, nn.Embedding)):
            return [name]
    return []


def residual_stream(
    model: nn.Module, prompts: Sequence[Sequence[int]], layers: Sequence[str]
) -> dict[str, Tensor]:
    """Read the residual stream at each prompt's last token, leaving training untouched.

    Returns:
        by layer, shape (prompts, d), float32 on the CPU.
    """
    rows: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    with torch.inference_mode(False), torch.no_grad(), evaluation.preserve_training_state(model):
        for at in range(0, len(prompts), ROWS_PER_PASS):
            batch = [list(row) for row in prompts[at : at + ROWS_PER_PASS]]
            with evaluation.capture_outputs(model, layers) as (outputs, _):
                last_logits(model, TokenBatch.pad(batch))
            for layer in layers:
                last = evaluation.last_rows(outputs[layer], len(batch))
                rows[layer].append(_require_rows(layer, last).cpu())
    return {layer: torch.cat(parts) for layer, parts in rows.items()}


def behavior_residual_stream(
    model: nn.Module, behavior: Behavior, layers: Sequence[str]
) -> dict[str, Tensor]:
    """Read the residual stream at the end of a behavior's probes; see `residual_stream`.

    Probes without token ids are evaluated by the behavior's margin function.
    """
    prompts = behavior.token_rows()
    if prompts is not None:
        return residual_stream(model, prompts, layers)
    result = evaluation.evaluate(behavior, model, layers=layers)
    n = len(result.margins)
    activations = {layer: result.activations.get(layer) for layer in layers}
    return {
        layer: _require_rows(layer, rows if rows is not None and len(rows) == n else None)
        for layer, rows in activations.items()
    }


def _require_rows(layer: str, rows: Tensor | None) -> Tensor:
    if rows is None:
        raise BehaviorError(
            f"layer {layer!r} does not give one row per prompt: name a module that runs once per "
            "pass and returns a tensor of shape (rows, d) or (rows, T, d)"
        )
    return rows.cpu()
