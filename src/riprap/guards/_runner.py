"""Runs a guard: lets it decide, applies what it proposes, and says what was done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from riprap.guards._base import Guard, GuardView, Proposal, RestoreProposal
from riprap.linalg import Vector, to_local, as_sharded
from riprap.types import Action


@dataclass
class GuardOutcome:
    """What came of asking the guards.

    Attributes:
        vector: what is to stand in the place of `view.vector`; None: leave it.
        to: the step whose state the run was put back to; None: it was not.
        stop: why training is to stop; empty: it goes on.
        actions: what each guard did.
    """

    vector: Vector | None = None
    restored_step: int | None = None
    stop: str = ""
    actions: list[Action] = field(default_factory=list)


def run_hook(guard: Guard, hook: str, view: GuardView) -> GuardOutcome:
    """Ask the guards whose turn it is, one after another; once one went back, no other is asked.

    Args:
        moment: "gradients", "update" or "visit".
    """
    outcome = GuardOutcome()
    for leaf in guard.active_guards(view):
        began = time.perf_counter()
        proposal: Proposal | None = getattr(leaf, f"on_{hook}")(view)
        if proposal is None:
            continue
        shadowed = leaf.shadow or guard.shadow
        detail = f"shadow: {proposal.detail}" if shadowed else proposal.detail
        applied = False if shadowed else _apply_proposal(proposal, outcome)
        if outcome.vector is not None:
            view = replace(view, vector=as_sharded(outcome.vector, view.parameters))
        seconds = time.perf_counter() - began
        numbers = (proposal.before, proposal.after, seconds)
        outcome.actions.append(Action(view.step, leaf.name, hook, applied, detail, *numbers))
        if outcome.restored_step is not None:
            break
    return outcome


def _apply_proposal(proposal: Proposal, outcome: GuardOutcome) -> bool:
    """Do what is proposed; whether that changed training."""
    outcome.stop = outcome.stop or proposal.stop
    if isinstance(proposal, RestoreProposal):
        proposal.restore()
        outcome.restored_step = proposal.to_step
        return True
    if proposal.vector is not None:
        outcome.vector = proposal.vector
    return proposal.vector is not None or bool(proposal.stop)


@torch.no_grad()
def write_gradient(parameters: Sequence[Tensor], vector: Vector, scale: float = 1.0) -> None:
    """Write a gradient into `.grad`, multiplied by `scale`.

    A parameter that had none gets one only where there is something to write: the optimizer would
    decay it otherwise.
    """
    for parameter, part in zip(parameters, vector, strict=True):
        own = to_local(part)
        own = own if scale == 1.0 else own * scale
        if parameter.grad is not None:
            to_local(parameter.grad).copy_(own)
        elif bool(own.any()):
            parameter.grad = torch.zeros_like(parameter)
            to_local(parameter.grad).copy_(own)


@torch.no_grad()
def write_update(
    parameters: Sequence[Tensor], before: Vector, update: Vector, applied: Vector
) -> None:
    """Move the parameters to where `update` leads from `before`.

    Args:
        applied: what the optimizer did. Where `update` holds the very same tensor the parameter is
            left as it is: before + (after − before) would round.
    """
    for parameter, start, part, own in zip(parameters, before, update, applied, strict=True):
        if part is not own:
            to_local(parameter).copy_(to_local(start) + to_local(part))
