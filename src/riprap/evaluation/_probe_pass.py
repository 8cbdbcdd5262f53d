"""Passes over probes, forward and backward, inside `no_trace`.

Gradients are taken by `torch.autograd.grad`, which accumulates nothing and fires no
post-accumulate hook.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riprap._distributed import raise_on_all_ranks, sharded
from riprap.behaviors import Behavior, Margins, TokenBatch, accepted_arguments, last_logits
from riprap.errors import BehaviorError
from riprap.evaluation._features import captured, rows_of
from riprap.evaluation._isolation import no_trace
from riprap.linalg import Vector, is_sharded


@dataclass
class Look:
    """What one pass over a behaviour's probes showed.

    Attributes:
        margins: shape (n_probes,), float64, on the CPU.
        insufficient: why the margins do not measure the behaviour; empty where they do.
        gradient: h_b = ∇ mean margin, one tensor per trainable parameter; None where it was not
            asked for or the margin is detached from the graph.
        activations: layer name -> residual stream at the last position, shape (rows, d), where a
            row is a probe, or a probe's option.
        logits: shape (rows, vocabulary) at the last position; None where the model's own output
            was not seen.
    """

    margins: np.ndarray
    insufficient: str = ""
    gradient: Vector | None = None
    activations: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None


def measure(behavior: Behavior, model: nn.Module) -> Margins:
    """The behaviour's margins as they stand, checked; attached to the graph if one is built.

    Raises:
        BehaviorError: the margins are not a tensor of shape (n_probes,) with a probe in it.
    """
    return checked(behavior, behavior.margins(model, behavior.probes))


def checked(behavior: Behavior, result: Tensor | Margins) -> Margins:
    """What a margin function returned, if it is of the right shape.

    Raises:
        BehaviorError: it is not a tensor of shape (n_probes,) with a probe in it.
    """
    margins = result if isinstance(result, Margins) else Margins(result)
    values = margins.values
    if not isinstance(values, Tensor) or values.dim() != 1 or len(values) == 0:
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise BehaviorError(
            f"behaviour {behavior.name!r}: margins gave {shape}; "
            "expected a tensor of shape (n_probes,) with at least one probe"
        )
    if values.is_complex() or values.is_meta:
        kind = "no data" if values.is_meta else "complex numbers"
        raise BehaviorError(f"behaviour {behavior.name!r}: margins hold {kind}; expected reals")
    return margins


def gradient_of(
    value: Tensor, parameters: Sequence[Tensor], keep_graph: bool = False
) -> Vector | None:
    """∇ value in `parameters`, zeros where it does not depend on one; None if on none of them.

    To be called inside `no_trace`.
    """
    if not value.requires_grad:
        return None
    if any(is_sharded(parameter) for parameter in parameters):
        return _accumulated(value, parameters)
    found = torch.autograd.grad(value, list(parameters), allow_unused=True, retain_graph=keep_graph)
    if all(part is None for part in found):
        return None
    return [
        torch.zeros_like(parameter) if part is None else part.detach()
        for parameter, part in zip(parameters, found, strict=True)
    ]


def _accumulated(value: Tensor, parameters: Sequence[Tensor]) -> Vector | None:
    """As `gradient_of`, by way of `.grad`: autograd gives None for parameters sharded by FSDP2.

    `no_trace` has put training's own `.grad` aside. Every rank sees the same probes, so the mean
    over ranks that FSDP2 takes is the gradient itself.
    """
    value.backward()  # type: ignore[no-untyped-call]
    found = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    if all(part is None for part in found):
        return None
    return [
        torch.zeros_like(parameter) if part is None else part.detach()
        for parameter, part in zip(parameters, found, strict=True)
    ]


def shared_passes(behaviors: Sequence[Behavior], model: nn.Module) -> list[list[Behavior]]:
    """Behaviours that one pass can serve together: those read from the last position's logits.

    Probes of different lengths share a pass only in a model that takes both an attention mask and
    position ids: in any other, padding would be refused, or would change the margins. In a model
    sharded over ranks no pass is shared: a graph can be walked back once only.
    """
    if sharded(model):
        return [[behavior] for behavior in behaviors]
    pads = {"attention_mask", "position_ids"} <= accepted_arguments(model)
    groups: dict[Any, list[Behavior]] = {}
    for behavior in behaviors:
        if not hasattr(behavior.margins, "from_logits"):
            groups[behavior.name] = [behavior]
        else:
            ragged = behavior.probes.attention_mask is not None
            alike = None if pads else (ragged, behavior.probes.input_ids.shape[1])
            groups.setdefault(alike, []).append(behavior)
    return list(groups.values())


def look_together(
    behaviors: Sequence[Behavior],
    model: nn.Module,
    parameters: Sequence[Tensor] | None = None,
    layers: Sequence[str] = (),
) -> dict[str, Look]:
    """One forward pass over the probes of several behaviours, and a backward pass for each.

    Args:
        behaviors: one, or one of the lists of `shared_passes`.
        parameters: take h_b in these; None: forward pass only.
        layers: names of modules whose output is kept, last position.

    Raises:
        BehaviorError: margins of a wrong shape.
    """
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(parameters is not None),
        no_trace(model),
        captured(model, layers) as (activations, outputs),
    ):
        with raise_on_all_ranks(model):
            margins = _margins_together(behaviors, model)
        gradients = _gradients([m.values for m in margins], parameters)
    sizes = [len(b.probes) for b in behaviors] if len(behaviors) > 1 else None
    logits = rows_of(outputs, None if sizes is None else sum(sizes))
    seen = None if logits is None else len(logits)
    features = {name: _split(rows_of(parts, seen), sizes) for name, parts in activations.items()}
    own_logits = _split(logits, sizes)
    return {
        behavior.name: Look(
            margins=margins[i].values.detach().double().cpu().numpy(),
            insufficient=margins[i].insufficient,
            gradient=gradients[i],
            activations={name: parts[i] for name, parts in features.items() if parts},
            logits=own_logits[i] if own_logits else None,
        )
        for i, behavior in enumerate(behaviors)
    }


def look(
    behavior: Behavior,
    model: nn.Module,
    parameters: Sequence[Tensor] | None = None,
    layers: Sequence[str] = (),
) -> Look:
    """One pass over one behaviour's probes; see `look_together`."""
    return look_together([behavior], model, parameters, layers)[behavior.name]


def _margins_together(behaviors: Sequence[Behavior], model: nn.Module) -> list[Margins]:
    if len(behaviors) == 1:
        return [measure(behaviors[0], model)]
    logits = last_logits(model, TokenBatch.join([b.probes for b in behaviors]))[:, -1]
    parts = logits.split([len(b.probes) for b in behaviors])
    return [
        checked(behavior, behavior.margins.from_logits(part))  # type: ignore[attr-defined]
        for behavior, part in zip(behaviors, parts, strict=True)
    ]


def _gradients(margins: list[Tensor], parameters: Sequence[Tensor] | None) -> list[Vector | None]:
    if parameters is None:
        return [None] * len(margins)
    last = len(margins) - 1
    return [
        gradient_of(values.mean(), parameters, keep_graph=i < last)
        if values.requires_grad
        else None
        for i, values in enumerate(margins)
    ]


def _split(rows: Tensor | None, sizes: list[int] | None) -> list[Tensor]:
    if rows is None:
        return []
    return [rows] if sizes is None else list(rows.split(sizes))


def loss_gradient(
    behavior: Behavior, model: nn.Module, parameters: Sequence[Tensor]
) -> Vector | None:
    """g_b = ∇ mean protected loss; None for a behaviour without losses."""
    if behavior.losses is None:
        return None
    with torch.inference_mode(False), torch.enable_grad(), no_trace(model):
        with raise_on_all_ranks(model):
            loss = behavior.losses(model, behavior.probes).mean()
        return gradient_of(loss, parameters)


def gradient_at(
    loss: Callable[[nn.Module, Any], Tensor],
    model: nn.Module,
    batch: Any,
    parameters: Sequence[Tensor],
) -> tuple[float, Vector | None]:
    """A scalar loss on a batch and its gradient, in evaluation mode, leaving no trace.

    Args:
        loss: loss(model, batch), a scalar attached to the graph.

    Returns:
        (the loss, its gradient; None where it depends on none of `parameters`).
    """
    with torch.inference_mode(False), torch.enable_grad(), no_trace(model):
        with raise_on_all_ranks(model):
            value = loss(model, batch)
        return float(value.detach()), gradient_of(value, parameters)


def start(behavior: Behavior, model: nn.Module) -> None:
    """Let a behaviour fix what it measures against the model as it is now."""
    if behavior.start is not None:
        with torch.inference_mode(False), torch.no_grad(), no_trace(model):
            behavior.start(model, behavior.probes)
