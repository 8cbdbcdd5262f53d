"""Forward and backward passes over probes, inside `preserve_training_state`.

Gradients are computed by `torch.autograd.grad`, which accumulates nothing and calls no
post-accumulate hook. A pass runs a second time if the first one taught something about the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riprap._distributed import has_sharded_parameters, raise_on_all_ranks
from riprap.behaviors import (
    Behavior,
    LastLogitsMargin,
    Margins,
    TokenBatch,
    accepted_arguments,
)
from riprap.errors import BehaviorError
from riprap.evaluation._features import capture_outputs, last_rows
from riprap.evaluation._isolation import repeat_if_learned
from riprap.evaluation._precision import Autocast
from riprap.linalg import Vector, densify, is_sharded

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
    """

    margins: np.ndarray
    insufficient: str = ""
    gradient: Vector | None = None
    gradient_error: str = ""
    activations: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None


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


def gradient_of(
    value: Tensor, parameters: Sequence[Tensor], keep_graph: bool = False
) -> Vector | None:
    """Compute ∇ value in `parameters`, with zeros for parameters that it does not depend on.

    Zero too for parameters that require no gradient now. None if it depends on none of them. Sparse
    gradients are returned dense. Call it inside `preserve_training_state`.
    """
    required = [parameter for parameter in parameters if parameter.requires_grad]
    if not value.requires_grad or not required:
        return None
    if any(is_sharded(parameter) for parameter in parameters):
        return _gradient_via_grad(value, parameters)
    found = torch.autograd.grad(value, required, allow_unused=True, retain_graph=keep_graph)
    by_id = {id(parameter): part for parameter, part in zip(required, found, strict=True)}
    return _fill_zeros([by_id.get(id(parameter)) for parameter in parameters], parameters)


def _gradient_via_grad(value: Tensor, parameters: Sequence[Tensor]) -> Vector | None:
    """Compute `gradient_of` through `.grad`: autograd returns None for parameters sharded by FSDP2.

    `preserve_training_state` has saved training's own `.grad`. Every rank has the same probes, so
    FSDP2's mean over ranks is the gradient itself.
    """
    value.backward()  # type: ignore[no-untyped-call]
    gradient = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return _fill_zeros(gradient, parameters)


def _fill_zeros(gradient: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Vector | None:
    if all(part is None for part in gradient):
        return None
    return [
        torch.zeros_like(parameter) if part is None else densify(part.detach())
        for parameter, part in zip(parameters, gradient, strict=True)
    ]


def group_by_forward_pass(behaviors: Sequence[Behavior], model: nn.Module) -> list[list[Behavior]]:
    """Group the behaviors that one pass can serve: a `LastLogitsMargin` with the same branches.

    Probes of different lengths share a pass only in a model that accepts both an attention mask
    and position ids; in any other, padding would be refused, or would change the margins. In a
    model sharded over ranks no pass is shared: a graph can be used for one backward pass only.
    """
    if has_sharded_parameters(model):
        return [[behavior] for behavior in behaviors]
    pads = {"attention_mask", "position_ids"} <= accepted_arguments(model)
    groups: dict[Any, list[Behavior]] = {}
    for behavior in behaviors:
        if not isinstance(behavior.margins, LastLogitsMargin):
            groups[behavior.name] = [behavior]
        else:
            padded = behavior.probes.attention_mask is not None
            shape = None if pads else (padded, behavior.probes.input_ids.shape[1])
            groups.setdefault((shape, behavior.margins.branches), []).append(behavior)
    return list(groups.values())


def evaluate_batch(
    behaviors: Sequence[Behavior],
    model: nn.Module,
    parameters: Sequence[Tensor] | None = None,
    layers: Sequence[str] = (),
    autocast: Autocast | None = None,
) -> dict[str, ProbeResult]:
    """Run one forward pass over the probes of several behaviors, and a backward pass for each.

    Args:
        behaviors: one behavior, or one of the lists of `group_by_forward_pass`.
        parameters: compute h_b in these; None: forward pass only.
        layers: names of modules whose output at the last position is captured.
        autocast: see `preserve_training_state`.

    Returns:
        results by behavior name.

    Raises:
        BehaviorError: margins of a wrong shape, or a model that cannot be evaluated in this state.
    """

    def run() -> dict[str, ProbeResult]:
        return _evaluate_once(behaviors, model, parameters, layers)

    with torch.inference_mode(False), torch.set_grad_enabled(parameters is not None):
        return repeat_if_learned(model, run, autocast, _results_agree)


def _results_agree(one: dict[str, ProbeResult], two: dict[str, ProbeResult]) -> bool:
    """Return whether the margins are equal, up to what half precision rounds."""
    return all(
        np.abs(result.margins - two[name].margins).max()
        <= MAX_DIFFERENCE * np.abs(result.margins).max()
        for name, result in one.items()
    )


def _evaluate_once(
    behaviors: Sequence[Behavior],
    model: nn.Module,
    parameters: Sequence[Tensor] | None,
    layers: Sequence[str],
) -> dict[str, ProbeResult]:
    with capture_outputs(model, layers) as (activations, outputs):
        with raise_on_all_ranks(model):
            margins = _batch_margins(behaviors, model)
        gradients, gradient_error = _gradients([m.values for m in margins], parameters)
    sizes = [len(b.probes) for b in behaviors] if len(behaviors) > 1 else None
    logits = last_rows(outputs, None if sizes is None else sum(sizes))
    n_rows = None if logits is None else len(logits)
    features = {
        name: _split(last_rows(parts, n_rows), sizes) for name, parts in activations.items()
    }
    own_logits = _split(logits, sizes)
    return {
        behavior.name: ProbeResult(
            margins=margins[i].values.detach().double().cpu().numpy(),
            insufficient=margins[i].insufficient,
            gradient=gradients[i],
            gradient_error=gradient_error,
            activations={name: parts[i] for name, parts in features.items() if parts},
            logits=own_logits[i] if own_logits else None,
        )
        for i, behavior in enumerate(behaviors)
    }


def evaluate(
    behavior: Behavior,
    model: nn.Module,
    parameters: Sequence[Tensor] | None = None,
    layers: Sequence[str] = (),
    autocast: Autocast | None = None,
) -> ProbeResult:
    """Run one pass over one behavior's probes; see `evaluate_batch`."""
    return evaluate_batch([behavior], model, parameters, layers, autocast)[behavior.name]


def _batch_margins(behaviors: Sequence[Behavior], model: nn.Module) -> list[Margins]:
    if len(behaviors) == 1:
        return [compute_margins(behaviors[0], model)]
    functions = [b.margins for b in behaviors if isinstance(b.margins, LastLogitsMargin)]
    logits = functions[0].read_logits(model, TokenBatch.join([b.probes for b in behaviors]))
    parts = logits.split([len(b.probes) for b in behaviors])
    return [
        validate_margins(behavior, function.from_logits(part))
        for behavior, function, part in zip(behaviors, functions, parts, strict=True)
    ]


def _gradients(
    margins: list[Tensor], parameters: Sequence[Tensor] | None
) -> tuple[list[Vector | None], str]:
    """Return the gradients, or None for each and the reason why the backward pass failed."""
    if parameters is None:
        return [None] * len(margins), ""
    last = len(margins) - 1
    try:
        gradients = [
            gradient_of(values.mean(), parameters, keep_graph=i < last)
            if values.requires_grad
            else None
            for i, values in enumerate(margins)
        ]
    except RuntimeError as error:
        if any(is_sharded(parameter) for parameter in parameters):
            raise  # the other ranks would wait
        return [None] * len(margins), f"{type(error).__name__}: {error}"
    return gradients, ""


def _split(rows: Tensor | None, sizes: list[int] | None) -> list[Tensor]:
    if rows is None:
        return []
    return [rows] if sizes is None else list(rows.split(sizes))


def loss_gradient(
    behavior: Behavior, model: nn.Module, parameters: Sequence[Tensor]
) -> Vector | None:
    """Compute g_b = ∇ mean protected loss; None for a behavior without losses."""
    if behavior.losses is None:
        return None
    losses = behavior.losses
    return loss_and_gradient(
        lambda model, probes: losses(model, probes).mean(), model, behavior.probes, parameters
    )[1]


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
    with torch.inference_mode(False), torch.no_grad():
        repeat_if_learned(model, lambda: behavior.margins.calibrate(model, behavior.probes))
