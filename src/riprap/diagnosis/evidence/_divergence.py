"""Divergence: how far a model is from its reference, at which token, and in which layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

from riprap._checks import checked, shown
from riprap.diagnosis._base import Estimate, Progress, estimate
from riprap.diagnosis._interpolation import WeightPath, names_by_layer, path_to_reference
from riprap.diagnosis._weight_sources import Reference, Weights
from riprap.diagnosis.evidence._residual_stream import residual_layers, residual_stream
from riprap.diagnosis.evidence._responses import (
    Prompts,
    ResponseBatch,
    Rows,
    greedy_responses,
    paired_responses,
    prompt_rows,
    response_batches,
)
from riprap.diagnosis.evidence._token_kl import TokenKL, kl_by_token, mean_kl
from riprap.diagnosis.evidence._weight_change import WeightChange, weight_change
from riprap.errors import ConfigError
from riprap.evaluation import layer_stacks, preserve_training_state

MIN_KL = 1e-6  # nats per token; below it there is no difference that a layer could explain


@dataclass(frozen=True)
class LayerChange:
    """Change of one layer, and its part in the divergence.

    Attributes:
        layer: embeddings, block, norm or head; a head tied to the embeddings belongs to them.
        parameters: number of parameters, because a larger layer contributes more to any change.
        relative_change: ‖θ − θ₀‖ / ‖θ₀‖.
        share_of_change: share of ‖θ − θ₀‖² over all layers.
        low_rank: by r, share of its matrices' ‖θ − θ₀‖² in the top r singular directions of each.
        activation_change: mean over prompts of ‖a − a₀‖ / ‖a₀‖ of the residual stream after it, at
            the last prompt token; None outside the stream.
        kl_after_restore: KL(reference ‖ model) in nats per token if this layer alone is restored to
            the reference; None if not requested.
        restored_share: 1 − kl_after_restore / KL: the share of the KL that disappears; below 0 if
            restoring harms. None if not requested, or if there is no KL.
    """

    layer: str
    parameters: int
    relative_change: float
    share_of_change: float
    low_rank: dict[int, float]
    activation_change: Estimate | None
    kl_after_restore: Estimate | None
    restored_share: float | None


@dataclass(frozen=True)
class Divergence:
    """Result of `divergence`. KL in nats; intervals are over prompts.

    Attributes:
        forward, backward: KL(reference ‖ model) and KL(model ‖ reference), mean over a response's
            tokens, then over prompts.
        forward_at, backward_at: the same at each token of the responses, over the prompts whose
            response is long enough (`Estimate.n`).
        layers: from the embeddings up.
        responses: token ids of the forced responses.
        origin: source of the responses.
    """

    forward: Estimate
    backward: Estimate
    forward_at: tuple[Estimate, ...]
    backward_at: tuple[Estimate, ...]
    layers: tuple[LayerChange, ...]
    responses: Rows
    origin: str

    def __repr__(self) -> str:
        layer = self.most_causal_layer
        most = "" if layer is None else f"; most of it from {layer.layer}"
        return (
            f"Divergence(KL(reference ‖ model) {self.forward.mean:.3g} nats per token over "
            f"{len(self.responses)} responses{most})"
        )

    @property
    def most_causal_layer(self) -> LayerChange | None:
        """Layer with the largest `restored_share`; None if no layer was restored."""
        restored = [layer for layer in self.layers if layer.restored_share is not None]
        return max(restored, key=lambda layer: layer.restored_share or 0.0, default=None)


@overload
def divergence(
    model: nn.Module,
    reference: Reference,
    prompts: Prompts,
    *,
    responses: Sequence[Sequence[int]] | None = ...,
    max_new_tokens: int = ...,
    layers: Sequence[str] | None = ...,
    weights_on_disk: Weights | None = ...,
    progress: Progress | None = ...,
) -> Divergence: ...


@overload
def divergence(
    model: nn.Module,
    reference: Mapping[str, Reference],
    prompts: Prompts,
    *,
    responses: Sequence[Sequence[int]] | None = ...,
    max_new_tokens: int = ...,
    layers: Sequence[str] | None = ...,
    weights_on_disk: Weights | None = ...,
    progress: Progress | None = ...,
) -> dict[str, Divergence]: ...


@checked
def divergence(
    model: nn.Module,
    reference: Reference | Mapping[str, Reference],
    prompts: Prompts,
    *,
    responses: Sequence[Sequence[int]] | None = None,
    max_new_tokens: int = 16,
    layers: Sequence[str] | None = None,
    weights_on_disk: Weights | None = None,
    progress: Progress | None = None,
) -> Divergence | dict[str, Divergence]:
    """Measure the KL to a reference in both directions, by token, and its sources, by layer.

    Teacher-forced: both models read the same responses. In place, with one model in memory (two
    without `weights_on_disk`) and limited batches of logits; the model is restored bit by bit.

    Args:
        reference: the model before training, or its weights; None: the model without its LoRA
            adapters. Or several by name, such as the pretrained and the aligned model; then the
            result has the same names, and all read the same responses.
        prompts: token ids of each prompt, or a behavior whose probes have them.
        responses: token ids, one row per prompt; None: greedy answers of the (first) reference.
        max_new_tokens: length of the longest greedy answer.
        layers: layers to restore one by one, with one pass each; None: all; empty: none.
        weights_on_disk: see `restore_weights`.

    Raises:
        BehaviorError: prompts and responses do not match.
        ConfigError: an unknown layer, or a reference that cannot be used (see `path_to_reference`).
    """
    if not (reference is None or isinstance(reference, nn.Module | Mapping)):
        raise ConfigError(
            f"reference={shown(reference)}: give the model before training, its weights as a "
            "mapping of tensors, or several of these by name"
        )
    rows = prompt_rows(prompts)
    given = None if responses is None else paired_responses(rows, responses)
    is_single = reference is None or isinstance(reference, nn.Module) or _is_weights(reference)
    references: Any = {"the reference": reference} if is_single else reference
    origin = "given" if given else f"{next(iter(references))}'s greedy answers"
    results: dict[str, Divergence] = {}
    for name, start in references.items():
        results[name] = _compare(
            model, start, rows, given, origin, max_new_tokens, layers, weights_on_disk, progress
        )
        given = results[name].responses
    return results["the reference"] if is_single else results


def _is_weights(reference: Mapping[str, object]) -> bool:
    if not reference:
        raise ConfigError("no reference was given: the mapping is empty")
    return isinstance(reference[next(iter(reference))], Tensor)


def _compare(
    model: nn.Module,
    reference: Reference,
    prompts: Rows,
    responses: Rows | None,
    origin: str,
    max_new_tokens: int,
    layers: Sequence[str] | None,
    weights_on_disk: Weights | None,
    progress: Progress | None,
) -> Divergence:
    """Divergence from one reference."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        preserve_training_state(model),
        path_to_reference(model, reference, weights_on_disk) as path,
    ):
        groups = names_by_layer(model, path.names)
        restored = _layers_to_restore(groups, layers)
        path.set_alpha(1.0)
        responses = responses or greedy_responses(model, prompts, max_new_tokens)
        # Without a list of equal blocks (an nn.Sequential) no layer's output is known to be the
        # residual stream: the weights are compared, and the activations are not.
        stream = residual_layers(model) if layer_stacks(model) else []
        before = residual_stream(model, prompts, stream) if stream else {}
        path.set_alpha(0.0)
        now = residual_stream(model, prompts, stream) if stream else {}
        changes = {layer: weight_change(path, names) for layer, names in groups.items()}
        batches = response_batches(model, prompts, responses)
        kls = _measure_kl(
            model, path, batches, {layer: groups[layer] for layer in restored}, progress
        )
    kl = kls.pop("")
    activations = {layer: _relative_change(before[layer], now[layer]) for layer in before}
    return Divergence(
        mean_kl(kl.forward),
        mean_kl(kl.backward),
        kl_by_token(kl.forward),
        kl_by_token(kl.backward),
        _layer_changes(changes, activations, mean_kl(kl.forward).mean, kls),
        responses,
        origin,
    )


def _layers_to_restore(groups: Mapping[str, list[str]], layers: Sequence[str] | None) -> list[str]:
    """Full names of the layers to restore, from names or their endings."""
    if layers is None:
        return list(groups)
    names = []
    for name in layers:
        matching = [full for full in groups if full == name or full.endswith(f".{name}")]
        if len(matching) != 1:
            raise ConfigError(f"layer {name!r} matches {len(matching)} of {', '.join(groups)}")
        names.append(matching[0])
    return names


def _measure_kl(
    model: nn.Module,
    path: WeightPath,
    batches: list[ResponseBatch],
    restored: Mapping[str, list[str]],
    progress: Progress | None,
) -> dict[str, TokenKL]:
    """KL by restored layer, and under "" without restoring any."""
    kls = {layer: TokenKL() for layer in ["", *restored]}
    total, done = len(batches) * len(kls), 0
    for batch in batches:
        path.set_alpha(1.0)
        reference = batch.logits(model).log_softmax(-1)
        path.set_alpha(0.0)
        for layer, kl in kls.items():
            names = restored.get(layer, [])
            path.set_alpha(1.0, names)
            kl.add(batch, reference, batch.logits(model).log_softmax(-1))
            path.set_alpha(0.0, names)
            done += 1
            if progress is not None:
                progress(done, total)
    return kls


def _relative_change(before: Tensor, now: Tensor) -> Estimate:
    norms = before.double().norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
    return estimate(((now.double() - before.double()).norm(dim=-1) / norms).numpy())


def _layer_changes(
    changes: dict[str, WeightChange],
    activations: dict[str, Estimate],
    kl: float,
    kls: dict[str, TokenKL],
) -> tuple[LayerChange, ...]:
    total = sum(change.squared_change for change in changes.values()) or 1.0
    layers = []
    for layer, change in changes.items():
        remaining = mean_kl(kls[layer].forward) if layer in kls else None
        restored = None if remaining is None or kl < MIN_KL else 1 - remaining.mean / kl
        layers.append(
            LayerChange(
                layer,
                change.parameters,
                change.relative_change,
                change.squared_change / total,
                change.low_rank,
                activations.get(layer),
                remaining,
                restored,
            )
        )
    return tuple(layers)
