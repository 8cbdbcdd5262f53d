"""Runs a guard: lets it decide, applies what it proposes, and says what was done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from riprap.evidence import Action
from riprap.guards.base import Guard, GuardView, Proposal
from riprap.tensors import Vector, local, sharded_like

Moment = Callable[[Guard, GuardView], Proposal | None]


def run(guard: Guard, moment: str, view: GuardView) -> tuple[Vector | None, list[Action]]:
    """Ask the guards whose turn it is, one after another.

    Args:
        moment: "gradients" or "update".

    Returns:
        what is to stand in place of `view.vector` (None: leave it), and what each guard did.
    """
    changed: Vector | None = None
    actions: list[Action] = []
    for leaf in guard.acting(view):
        began = time.perf_counter()
        proposal: Proposal | None = getattr(leaf, f"on_{moment}")(view)
        if proposal is None:
            continue
        shadowed = leaf.shadow or guard.shadow
        detail = f"shadow: {proposal.detail}" if shadowed else proposal.detail
        applied = False
        if proposal.vector is not None and not shadowed:
            applied, changed = True, proposal.vector
            view = replace(view, vector=sharded_like(changed, view.parameters))
        seconds = time.perf_counter() - began
        numbers = (proposal.before, proposal.after, seconds)
        actions.append(Action(view.step, leaf.name, moment, applied, detail, *numbers))
    return changed, actions


@torch.no_grad()
def put_gradient(parameters: Sequence[Tensor], vector: Vector, scale: float = 1.0) -> None:
    """Write a gradient into `.grad`, multiplied by `scale`.

    A parameter that had none gets one only where there is something to write: the optimizer would
    decay it otherwise.
    """
    for parameter, part in zip(parameters, vector, strict=True):
        own = local(part)
        own = own if scale == 1.0 else own * scale
        if parameter.grad is not None:
            local(parameter.grad).copy_(own)
        elif bool(own.any()):
            parameter.grad = torch.zeros_like(parameter)
            local(parameter.grad).copy_(own)


@torch.no_grad()
def put_update(
    parameters: Sequence[Tensor], before: Vector, update: Vector, applied: Vector
) -> None:
    """Move the parameters to where `update` leads from `before`.

    Args:
        applied: what the optimizer did. Where `update` holds the very same tensor the parameter is
            left as it is: before + (after − before) would round.
    """
    for parameter, start, part, own in zip(parameters, before, update, applied, strict=True):
        if part is not own:
            local(parameter).copy_(local(start) + local(part))
