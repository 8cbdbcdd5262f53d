"""Divergence: how far a model has gone from its reference, at which token, and in which layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor, nn

from riprap.diagnosis._base import Estimate, Progress, estimate
from riprap.diagnosis._interpolation import WeightPath, names_by_layer, path_to_reference
from riprap.diagnosis._weight_sources import Reference, Weights
from riprap.diagnosis.evidence._residual_stream import residual_stream, residual_layers
from riprap.diagnosis.evidence._responses import (
    ResponseBatch,
    Prompts,
    Rows,
    paired_responses,
    response_batches,
    prompt_rows,
    greedy_responses,
)
from riprap.diagnosis.evidence._token_kl import TokenKL, kl_by_token, mean_kl
from riprap.diagnosis.evidence._weight_change import WeightChange, weight_change
from riprap.errors import ConfigError
from riprap.evaluation import preserve_training_state

MIN_KL = 1e-6  # nats per token under which nothing is there that a layer could bring back


@dataclass(frozen=True)
class LayerChange:
    """One layer's part in what changed.

    Attributes:
        layer: embeddings, block, norm or head; a head tied to the embeddings moves with them.
        parameters: how many numbers it has, since a larger layer has more of any movement.
        relative: ‖θ − θ₀‖ / ‖θ₀‖.
        share: of ‖θ − θ₀‖² over all layers.
        low_rank: share of its matrices' ‖θ − θ₀‖² in the top r singular directions of each, by r.
        activation: mean over prompts of ‖a − a₀‖ / ‖a₀‖ of the residual stream after it, at the
            last prompt token; None outside of the stream.
        left: KL(reference ‖ model) in nats per token when this layer alone is set back to the
            reference; None where that was not asked for.
        back: 1 − left / KL: the share that setting it back brings back; below 0 it harms. None
            where it was not asked for, or nothing is there to bring back.
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
    """What `divergence` found. KL in nats; intervals are over prompts.

    Attributes:
        forward, backward: KL(reference ‖ model) and KL(model ‖ reference), mean over a response's
            tokens, then over prompts.
        forward_at, backward_at: the same at each token of the responses, the first one first, over
            those prompts whose response is as long (`Estimate.n`).
        layers: from the embeddings up.
        responses: token ids of those that were forced.
        origin: where they come from.
    """

    forward: Estimate
    backward: Estimate
    forward_at: tuple[Estimate, ...]
    backward_at: tuple[Estimate, ...]
    layers: tuple[LayerChange, ...]
    responses: Rows
    origin: str

    @property
    def most_causal_layer(self) -> LayerChange | None:
        """The layer that brings most back when it alone is set back; None where none was tried."""
        tried = [layer for layer in self.layers if layer.restored_share is not None]
        return max(tried, key=lambda layer: layer.restored_share or 0.0, default=None)


@overload
def divergence(
    model: nn.Module,
    reference: Reference,
    prompts: Prompts,
    *,
    responses: Sequence[Sequence[int]] | None = ...,
    tokens: int = ...,
    layers: Sequence[str] | None = ...,
    home: Weights | None = ...,
    progress: Progress | None = ...,
) -> Divergence: ...


@overload
def divergence(
    model: nn.Module,
    reference: Mapping[str, Reference],
    prompts: Prompts,
    *,
    responses: Sequence[Sequence[int]] | None = ...,
    tokens: int = ...,
    layers: Sequence[str] | None = ...,
    home: Weights | None = ...,
    progress: Progress | None = ...,
) -> dict[str, Divergence]: ...


def divergence(
    model: nn.Module,
    reference: Reference | Mapping[str, Reference],
    prompts: Prompts,
    *,
    responses: Sequence[Sequence[int]] | None = None,
    tokens: int = 16,
    layers: Sequence[str] | None = None,
    home: Weights | None = None,
    progress: Progress | None = None,
) -> Divergence | dict[str, Divergence]:
    """KL both ways to a reference, by token of the response, and where it comes from, by layer.

    Teacher-forced: both read the same responses. In place, one model in memory (two where `home` is
    missing), logits in bounded batches; bit by bit as before afterwards.

    Args:
        reference: the model or the weights before; None: the model without its LoRA adapters. Or
            several by name, such as the pretrained and the aligned model: then the answer has the
            same names, and all read the same responses.
        prompts: token ids of each, or a behaviour whose probes hold them.
        responses: token ids, one row a prompt; None: greedy answers of the (first) reference.
        tokens: the longest of those.
        layers: which are set back one by one to see what that brings back, a pass for each; None:
            all; empty: none.
        home: see `kept`.

    Raises:
        BehaviorError: prompts and responses do not fit together.
        ConfigError: an unknown layer; else see `way_back`.
    """
    rows = prompt_rows(prompts)
    wanted = None if responses is None else paired_responses(rows, responses)
    if reference is None or isinstance(reference, nn.Module) or _is_weights(reference):
        asked = _Comparison(rows, wanted, "given" if wanted else "the reference's greedy answers")
        return asked.compare(model, reference, tokens, layers, home, progress)  # type: ignore[arg-type]
    found: dict[str, Divergence] = {}
    asked = _Comparison(rows, wanted, "given" if wanted else f"{next(iter(reference))}'s greedy answers")
    for name, one in reference.items():
        found[name] = asked.compare(model, one, tokens, layers, home, progress)  # type: ignore[arg-type]
        asked = _Comparison(rows, found[name].responses, asked.origin)
    return found


def _is_weights(reference: Mapping[str, object]) -> bool:
    if not reference:
        raise ConfigError("no reference is given: the mapping is empty")
    return isinstance(reference[next(iter(reference))], Tensor)


@dataclass(frozen=True)
class _Comparison:
    rows: Rows
    responses: Rows | None
    origin: str

    def compare(
        self,
        model: nn.Module,
        reference: Reference,
        tokens: int,
        layers: Sequence[str] | None,
        home: Weights | None,
        progress: Progress | None,
    ) -> Divergence:
        """The divergence from one reference."""
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            preserve_training_state(model),
            path_to_reference(model, reference, home) as way,
        ):
            groups = names_by_layer(model, way.names)
            tried = _layers_to_restore(groups, layers)
            way.set_alpha(1.0)
            responses = self.responses or greedy_responses(model, self.rows, tokens)
            there = residual_stream(model, self.rows, residual_layers(model))
            way.set_alpha(0.0)
            here = residual_stream(model, self.rows, list(there))
            moved = {layer: weight_change(way, own) for layer, own in groups.items()}
            batches = response_batches(model, self.rows, responses)
            tallies = _measure_kl(
                model, way, batches, {layer: groups[layer] for layer in tried}, progress
            )
        whole = tallies.pop("")
        changes = {name: _relative_change(there[name], here[name]) for name in there}
        return Divergence(
            mean_kl(whole.forward),
            mean_kl(whole.backward),
            kl_by_token(whole.forward),
            kl_by_token(whole.backward),
            _layer_changes(moved, changes, mean_kl(whole.forward).mean, tallies),
            responses,
            self.origin,
        )


def _layers_to_restore(groups: Mapping[str, list[str]], layers: Sequence[str] | None) -> list[str]:
    """Layers to set back, by name or by an end of it."""
    if layers is None:
        return list(groups)
    found = []
    for name in layers:
        fitting = [own for own in groups if own == name or own.endswith(f".{name}")]
        if len(fitting) != 1:
            raise ConfigError(f"layer {name!r} names {len(fitting)} of {', '.join(groups)}")
        found.append(fitting[0])
    return found


def _measure_kl(
    model: nn.Module,
    way: WeightPath,
    batches: list[ResponseBatch],
    tried: Mapping[str, list[str]],
    progress: Progress | None,
) -> dict[str, TokenKL]:
    """By layer that is set back, and under "" with none."""
    tallies = {layer: TokenKL() for layer in ["", *tried]}
    total, done = len(batches) * len(tallies), 0
    for part in batches:
        way.set_alpha(1.0)
        reference = part.logits(model).log_softmax(-1)
        way.set_alpha(0.0)
        for layer, tally in tallies.items():
            own = tried.get(layer, [])
            way.set_alpha(1.0, own)
            tally.add(part, reference, part.logits(model).log_softmax(-1))
            way.set_alpha(0.0, own)
            done += 1
            if progress is not None:
                progress(done, total)
    return tallies


def _relative_change(before: Tensor, after: Tensor) -> Estimate:
    sizes = before.double().norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
    return estimate(((after.double() - before.double()).norm(dim=-1) / sizes).numpy())


def _layer_changes(
    moved: dict[str, WeightChange],
    changes: dict[str, Estimate],
    whole: float,
    tallies: dict[str, TokenKL],
) -> tuple[LayerChange, ...]:
    total = sum(one.squared_change for one in moved.values()) or 1.0
    found = []
    for layer, one in moved.items():
        left = mean_kl(tallies[layer].forward) if layer in tallies else None
        back = None if left is None or whole < MIN_KL else 1 - left.mean / whole
        found.append(
            LayerChange(
                layer,
                one.parameters,
                one.relative_change,
                one.squared_change / total,
                one.low_rank,
                changes.get(layer),
                left,
                back,
            )
        )
    return tuple(found)
