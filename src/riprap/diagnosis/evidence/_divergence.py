"""Divergence: how far a model has gone from its reference, at which token, and in which layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor, nn

from riprap.diagnosis._base import Estimate, Progress, estimate
from riprap.diagnosis._interpolation import Way, by_layer, way_back
from riprap.diagnosis._weight_sources import Reference, Weights
from riprap.diagnosis.evidence._residual_stream import stream, stream_layers
from riprap.diagnosis.evidence._responses import (
    Part,
    Prompts,
    Rows,
    paired,
    parts,
    prompts_of,
    responses_of,
)
from riprap.diagnosis.evidence._token_kl import Tally, by_token, overall
from riprap.diagnosis.evidence._weight_change import Movement, movement
from riprap.errors import ConfigError
from riprap.evaluation import no_trace

SAME = 1e-6  # nats per token under which nothing is there that a layer could bring back


@dataclass(frozen=True)
class LayerMoved:
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
    relative: float
    share: float
    low_rank: dict[int, float]
    activation: Estimate | None
    left: Estimate | None
    back: float | None


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
    layers: tuple[LayerMoved, ...]
    responses: Rows
    origin: str

    @property
    def cause(self) -> LayerMoved | None:
        """The layer that brings most back when it alone is set back; None where none was tried."""
        tried = [layer for layer in self.layers if layer.back is not None]
        return max(tried, key=lambda layer: layer.back or 0.0, default=None)


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
    rows = prompts_of(prompts)
    wanted = None if responses is None else paired(rows, responses)
    if reference is None or isinstance(reference, nn.Module) or _is_weights(reference):
        asked = _Asked(rows, wanted, "given" if wanted else "the reference's greedy answers")
        return asked.of(model, reference, tokens, layers, home, progress)  # type: ignore[arg-type]
    found: dict[str, Divergence] = {}
    asked = _Asked(rows, wanted, "given" if wanted else f"{next(iter(reference))}'s greedy answers")
    for name, one in reference.items():
        found[name] = asked.of(model, one, tokens, layers, home, progress)  # type: ignore[arg-type]
        asked = _Asked(rows, found[name].responses, asked.origin)
    return found


def _is_weights(reference: Mapping[str, object]) -> bool:
    if not reference:
        raise ConfigError("no reference is given: the mapping is empty")
    return isinstance(reference[next(iter(reference))], Tensor)


@dataclass(frozen=True)
class _Asked:
    rows: Rows
    responses: Rows | None
    origin: str

    def of(
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
            no_trace(model),
            way_back(model, reference, home) as way,
        ):
            groups = by_layer(model, way.names)
            tried = _tried(groups, layers)
            way.go(1.0)
            responses = self.responses or responses_of(model, self.rows, tokens)
            there = stream(model, self.rows, stream_layers(model))
            way.go(0.0)
            here = stream(model, self.rows, list(there))
            moved = {layer: movement(way, own) for layer, own in groups.items()}
            batches = parts(model, self.rows, responses)
            tallies = _tallied(
                model, way, batches, {layer: groups[layer] for layer in tried}, progress
            )
        whole = tallies.pop("")
        changes = {name: _relative(there[name], here[name]) for name in there}
        return Divergence(
            overall(whole.forward),
            overall(whole.backward),
            by_token(whole.forward),
            by_token(whole.backward),
            _layers(moved, changes, overall(whole.forward).mean, tallies),
            responses,
            self.origin,
        )


def _tried(groups: Mapping[str, list[str]], layers: Sequence[str] | None) -> list[str]:
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


def _tallied(
    model: nn.Module,
    way: Way,
    batches: list[Part],
    tried: Mapping[str, list[str]],
    progress: Progress | None,
) -> dict[str, Tally]:
    """By layer that is set back, and under "" with none."""
    tallies = {layer: Tally() for layer in ["", *tried]}
    total, done = len(batches) * len(tallies), 0
    for part in batches:
        way.go(1.0)
        reference = part.logits(model).log_softmax(-1)
        way.go(0.0)
        for layer, tally in tallies.items():
            own = tried.get(layer, [])
            way.go(1.0, own)
            tally.add(part, reference, part.logits(model).log_softmax(-1))
            way.go(0.0, own)
            done += 1
            if progress is not None:
                progress(done, total)
    return tallies


def _relative(before: Tensor, after: Tensor) -> Estimate:
    sizes = before.double().norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
    return estimate(((after.double() - before.double()).norm(dim=-1) / sizes).numpy())


def _layers(
    moved: dict[str, Movement],
    changes: dict[str, Estimate],
    whole: float,
    tallies: dict[str, Tally],
) -> tuple[LayerMoved, ...]:
    total = sum(one.moved for one in moved.values()) or 1.0
    found = []
    for layer, one in moved.items():
        left = overall(tallies[layer].forward) if layer in tallies else None
        back = None if left is None or whole < SAME else 1 - left.mean / whole
        found.append(
            LayerMoved(
                layer,
                one.parameters,
                one.relative,
                one.moved / total,
                one.low_rank,
                changes.get(layer),
                left,
                back,
            )
        )
    return tuple(found)
