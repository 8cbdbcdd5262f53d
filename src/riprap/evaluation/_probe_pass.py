"""Forward and backward passes over probes, inside `preserve_training_state`.

A pass runs a second time if the first one taught something about the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riprap._distributed import has_sharded_parameters, raise_on_all_ranks
from riprap.behaviors import (
    Behavior,
    LastLogitsMargin,
    Likelihood,
    Margins,
    TokenBatch,
    accepted_arguments,
    collect_answers,
    note_answers,
    shared_start,
)
from riprap.errors import BehaviorError
from riprap.evaluation._chunks import Chunk, can_be_halved, run_in_chunks
from riprap.evaluation._features import capture_outputs, last_rows
from riprap.evaluation._gradients import GradientSum, gradient_of
from riprap.evaluation._isolation import repeat_if_learned
from riprap.evaluation._precision import Autocast
from riprap.evaluation._token_budget import is_out_of_memory
from riprap.linalg import Vector, is_sharded

MAX_DIFFERENCE = 0.05  # of the largest margin, between evaluation and training mode of a module


@dataclass
class ProbeResult:
    """Result of one pass over a behavior's probes.

    Attributes:
        margins: shape (n_probes,), float64, on the CPU.
        insufficient: why the margins do not measure the behavior; empty where they do.
        gradient: h_b = ∇ mean margin, one tensor for each trainable parameter; None where it was
            not requested, the margin is detached from the graph, or the backward pass failed.
        gradient_error: why the backward pass failed; empty where it did not.
        activations: layer name -> residual stream at the last position, shape (rows, d); a row is
            a probe, or a probe's option.
        logits: shape (rows, vocabulary) at the last position; None where the model's own output
            was not captured.
        answers: token ids with which the model begins to answer each probe; None where they were
            not requested, or the margin does not show them.
        answers_error: why they could not be read; empty where they were.
    """

    margins: np.ndarray
    insufficient: str = ""
    gradient: Vector | None = None
    gradient_error: str = ""
    activations: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    answers: list[list[int]] | None = None
    answers_error: str = ""


def compute_margins(behavior: Behavior, model: nn.Module) -> Margins:
    """Compute a behavior's margins and validate them; attached to the graph if one is built.

    Raises:
        BehaviorError: as `validate_margins`.
    """
    return validate_margins(behavior, behavior.margins(model, behavior.probes))


def validate_margins(behavior: Behavior, result: Tensor | Margins) -> Margins:
    """Return a margin function's result as `Margins`, if it has the right shape.

    Raises:
        BehaviorError: it is not a real tensor of shape (n_probes,) with at least one probe.
    """
    margins = result if isinstance(result, Margins) else Margins(result)
    values = margins.values
    if not isinstance(values, Tensor) or values.dim() != 1 or len(values) == 0:
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise BehaviorError(
            f"behavior {behavior.name!r}: the margin function returned {shape}; expected a tensor "
            "of shape (n_probes,) with at least one probe"
        )
    if values.is_complex() or values.is_meta:
        kind = "no data" if values.is_meta else "complex numbers"
        raise BehaviorError(
            f"behavior {behavior.name!r}: the margins contain {kind}; expected real numbers"
        )
    return margins


def group_by_forward_pass(behaviors: Sequence[Behavior], model: nn.Module) -> list[list[Behavior]]:
    """Group the behaviors that one pass can serve: a `LastLogitsMargin` with the same branches.

    Probes of different lengths share a pass only in a model that accepts both an attention mask
    and position ids; in any other, padding would be refused, or would change the margins. Probes
    that begin alike are not mixed with others where a cache can hold their beginning. In a model
    sharded over ranks no pass is shared.
    """
    if has_sharded_parameters(model):
        return [[behavior] for behavior in behaviors]
    accepted = accepted_arguments(model)
    pads = {"attention_mask", "position_ids"} <= accepted
    groups: dict[Any, list[Behavior]] = {}
    for behavior in behaviors:
        if not isinstance(behavior.margins, LastLogitsMargin):
            groups[behavior.name] = [behavior]
        else:
            padded = behavior.probes.attention_mask is not None
            shape = None if pads else (padded, behavior.probes.input_ids.shape[1])
            start = shared_start(behavior) if "past_key_values" in accepted else ()
            groups.setdefault((shape, start, behavior.margins.branches), []).append(behavior)
    return list(groups.values())


def evaluate_batch(
    behaviors: Sequence[Behavior],
    model: nn.Module,
    parameters: Sequence[Tensor] | None = None,
    layers: Sequence[str] = (),
    autocast: Autocast | None = None,
    answers: bool = False,
) -> dict[str, ProbeResult]:
    """Evaluate the probes of several behaviors, in chunks of as many tokens as training's batches.

    A forward pass serves all behaviors. With gradients every behavior has passes of its own: so
    each backward pass goes through the rows of one behavior only.

    Args:
        behaviors: one behavior, or one of the lists of `group_by_forward_pass`.
        parameters: compute h_b in these; None: forward pass only.
        layers: names of modules whose output at the last position is captured.
        autocast: see `preserve_training_state`.
        answers: also read how the model begins to answer.

    Returns:
        results by behavior name.

    Raises:
        BehaviorError: margins of a wrong shape, or a model that cannot be evaluated in this state.
    """

    def run() -> dict[str, ProbeResult]:
        together = [behaviors] if parameters is None else [[behavior] for behavior in behaviors]
        collected = {behavior.name: _Collected() for behavior in behaviors}
        for group in together:
            _evaluate_in_chunks(group, model, parameters, layers, answers, collected)
        return {b.name: collected[b.name].result(b) for b in behaviors}

    with torch.inference_mode(False), torch.set_grad_enabled(parameters is not None):
        return repeat_if_learned(model, run, autocast, _results_agree)


def evaluate(
    behavior: Behavior,
    model: nn.Module,
    parameters: Sequence[Tensor] | None = None,
    layers: Sequence[str] = (),
    autocast: Autocast | None = None,
    answers: bool = False,
) -> ProbeResult:
    """Evaluate one behavior's probes; see `evaluate_batch`."""
    results = evaluate_batch([behavior], model, parameters, layers, autocast, answers)
    return results[behavior.name]


def _results_agree(one: dict[str, ProbeResult], two: dict[str, ProbeResult]) -> bool:
    """Return whether the margins are equal, up to what half precision rounds."""
    return all(
        np.abs(result.margins - two[name].margins).max()
        <= MAX_DIFFERENCE * np.abs(result.margins).max()
        for name, result in one.items()
    )


@dataclass
class _PartResult:
    """Result of a pass over a part of the probes."""

    indices: tuple[int, ...] | None
    margins: Margins
    activations: dict[str, Tensor]
    logits: Tensor | None
    answers: list[list[int]] | None = None


@dataclass
class _Collected:
    """Results of the chunks of one behavior, and the sum of their gradients."""

    parts: list[_PartResult] = field(default_factory=list)
    gradient: GradientSum = field(default_factory=GradientSum)
    gradient_error: str = ""
    answers_error: str = ""

    def result(self, behavior: Behavior) -> ProbeResult:
        """Combine the parts, in the order of the probes."""
        values = self.in_order([part.margins.values.double().cpu() for part in self.parts])
        assert values is not None
        reasons = [part.margins.insufficient for part in self.parts]
        insufficient = next(filter(None, reasons), "")
        evidence = self.in_order([part.margins.evidence for part in self.parts])
        if evidence is not None and len(self.parts) > 1:
            insufficient = behavior.margins.insufficiency(evidence)
        features = {
            name: self.in_order([part.activations.get(name) for part in self.parts])
            for name in self.parts[0].activations
        }
        return ProbeResult(
            margins=values.numpy(),
            insufficient=insufficient,
            gradient=None if self.gradient_error else self.gradient.result(),
            gradient_error=self.gradient_error,
            activations={name: rows for name, rows in features.items() if rows is not None},
            logits=self.in_order([part.logits for part in self.parts]),
            answers=self._answers_in_order(len(values)),
            answers_error=self.answers_error,
        )

    def _answers_in_order(self, n_probes: int) -> list[list[int]] | None:
        found: list[list[int]] = [[]] * n_probes
        for part in self.parts:
            if part.answers is None:
                return None
            for index, answer in zip(part.indices or range(n_probes), part.answers, strict=True):
                found[index] = answer
        return found

    def in_order(self, tensors: list[Tensor | None]) -> Tensor | None:
        """Concatenate rows of the parts; None if a part has none, or not equally many a probe."""
        found = [tensor for tensor in tensors if tensor is not None]
        if len(found) < len(tensors) or len({part.shape[1:] for part in found}) > 1:
            return None
        if len(found) == 1 and self.parts[0].indices is None:
            return found[0]
        indices = torch.tensor([i for part in self.parts for i in part.indices or ()])
        rows = torch.cat(found)
        per_probe, rest = divmod(len(rows), len(indices))
        if rest or any(
            len(one) != per_probe * len(part.indices or ())
            for one, part in zip(found, self.parts, strict=True)
        ):
            return None
        order = indices.argsort().to(rows.device)
        return rows.unflatten(0, (len(indices), per_probe))[order].flatten(0, 1)


def _evaluate_in_chunks(
    behaviors: Sequence[Behavior],
    model: nn.Module,
    parameters: Sequence[Tensor] | None,
    layers: Sequence[str],
    answers: bool,
    collected: dict[str, _Collected],
) -> None:
    def run(chunk: Chunk) -> None:
        parts = [part.behavior() for part in chunk.parts]
        with (
            capture_outputs(model, layers) as (activations, outputs),
            collect_answers(answers) as noted,
            raise_on_all_ranks(model),
        ):
            margins = _batch_margins(parts, model)
        if parameters is not None:
            own = collected[behaviors[0].name]
            _add_gradient(own, chunk, margins[0].values, parameters, can_be_halved(chunk, model))
        sizes = [len(b.probes) for b in parts] if len(parts) > 1 else None
        logits = last_rows(outputs, None if sizes is None else sum(sizes))
        n_rows = None if logits is None else len(logits)
        features = {
            name: _split(last_rows(rows, n_rows), sizes) for name, rows in activations.items()
        }
        own_logits = _split(logits, sizes)
        own_answers = _own_answers(noted.rows, [len(own.values) for own in margins])
        for i, part in enumerate(chunk.parts):
            found = Margins(
                margins[i].values.detach(), margins[i].insufficient, margins[i].evidence
            )
            own_features = {name: rows[i] for name, rows in features.items() if rows}
            own_part = own_logits[i] if own_logits else None
            own = collected[part.whole.name]
            own.answers_error = own.answers_error or noted.error
            own.parts.append(
                _PartResult(part.indices, found, own_features, own_part, own_answers[i])
            )

    run_in_chunks(behaviors, model, parameters is not None, run)


def _add_gradient(
    own: _Collected,
    chunk: Chunk,
    margins: Tensor,
    parameters: Sequence[Tensor],
    can_be_halved: bool,
) -> None:
    """Add a chunk's share of the gradient of the mean margin, or store why there is none."""
    if own.gradient_error or not margins.requires_grad:
        return
    try:
        own.gradient.add(gradient_of(_share_of_mean(chunk, margins), parameters))
    except RuntimeError as error:
        if any(is_sharded(parameter) for parameter in parameters):
            raise  # the other ranks would wait
        if is_out_of_memory(error) and can_be_halved:
            raise
        own.gradient_error = f"{type(error).__name__}: {error}"


def _share_of_mean(chunk: Chunk, values: Tensor) -> Tensor:
    """Return what a chunk's values add to the mean over all probes of its behavior."""
    part = chunk.parts[0]
    return values.mean() if part.indices is None else values.sum() / len(part.whole.probes)


def _batch_margins(behaviors: Sequence[Behavior], model: nn.Module) -> list[Margins]:
    if len(behaviors) == 1:
        return [compute_margins(behaviors[0], model)]
    functions = [b.margins for b in behaviors if isinstance(b.margins, LastLogitsMargin)]
    logits = functions[0].read_logits(model, TokenBatch.join([b.probes for b in behaviors]))
    parts = logits.split([len(b.probes) for b in behaviors])
    for function, part in zip(functions, parts, strict=True):
        note_answers(partial(function.answers, part))
    return [
        validate_margins(behavior, function.from_logits(part))
        for behavior, function, part in zip(behaviors, functions, parts, strict=True)
    ]


def _own_answers(noted: list[list[int]], sizes: Sequence[int]) -> list[list[list[int]] | None]:
    """Split answers by behavior; None where there is not one for each probe."""
    if len(noted) != sum(sizes):
        return [None] * len(sizes)
    ends = list(accumulate(sizes))
    return [noted[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _split(rows: Tensor | None, sizes: list[int] | None) -> list[Tensor]:
    if rows is None:
        return []
    return [rows] if sizes is None else list(rows.split(sizes))


def _chunk_losses(chunk: Chunk, model: nn.Module) -> Tensor:
    part = chunk.parts[0].behavior()
    assert part.losses is not None
    return part.losses(model, part.probes)


def loss_gradient(
    behavior: Behavior, model: nn.Module, parameters: Sequence[Tensor]
) -> Vector | None:
    """Compute g_b = ∇ mean protected loss; None for a behavior without losses."""
    if behavior.losses is None:
        return None

    def run() -> Vector | None:
        total = GradientSum()

        def run_chunk(chunk: Chunk) -> None:
            with raise_on_all_ranks(model):
                value = _share_of_mean(chunk, _chunk_losses(chunk, model))
            total.add(gradient_of(value, parameters))

        run_in_chunks([behavior], model, True, run_chunk)
        return total.result()

    with torch.inference_mode(False), torch.enable_grad():
        return repeat_if_learned(model, run)


def loss_and_gradient(
    loss: Callable[[nn.Module, Any], Tensor],
    model: nn.Module,
    batch: Any,
    parameters: Sequence[Tensor],
) -> tuple[float, Vector | None]:
    """Compute a scalar loss on a batch and its gradient, inside `preserve_training_state`.

    Args:
        loss: loss(model, batch), a scalar attached to the graph.

    Returns:
        (the loss, its gradient); the gradient is None where it depends on none of `parameters`.
    """

    def run() -> tuple[float, Vector | None]:
        with raise_on_all_ranks(model):
            value = loss(model, batch)
        return float(value.detach()), gradient_of(value, parameters)

    with torch.inference_mode(False), torch.enable_grad():
        return repeat_if_learned(model, run)


def calibrate(behavior: Behavior, model: nn.Module) -> None:
    """Let a behavior store what later margins are compared with, from the model as it is now."""
    margins = behavior.margins

    def run() -> None:
        if type(margins) is Likelihood:
            margins.reference = _losses(behavior, model)
        else:
            margins.calibrate(model, behavior.probes)

    with torch.inference_mode(False), torch.no_grad():
        repeat_if_learned(model, run)


def _losses(behavior: Behavior, model: nn.Module) -> Tensor:
    """Compute the loss of each probe, in chunks and without a graph."""
    collected = _Collected()

    def run(chunk: Chunk) -> None:
        losses = _chunk_losses(chunk, model)
        collected.parts.append(_PartResult(chunk.parts[0].indices, Margins(losses), {}, None))

    run_in_chunks([behavior], model, False, run)
    values = collected.in_order([part.margins.values for part in collected.parts])
    assert values is not None
    return values
