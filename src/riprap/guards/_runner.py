"""Run the hooks of a guard, apply what it proposes, and report what was done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from riprap.guards._base import Guard, GuardView, Proposal, RestoreProposal
from riprap.linalg import Vector, as_sharded, to_local
from riprap.types import Action

# By `Action.moment`, which is stored in records.
HOOKS: dict[str, Callable[[Guard, GuardView], Proposal | None]] = {
    "gradients": lambda guard, view: guard.on_gradients(view),
    "update": lambda guard, view: guard.on_update(view),
    "visit": lambda guard, view: guard.on_probe_evaluation(view),
}


@dataclass
class GuardOutcome:
    """Result of running one hook of a guard.

    Attributes:
        vector: replacement for `view.vector`; None leaves it unchanged.
        restored_step: the step whose state was restored; None if none was.
        stop: why training should stop; empty to continue.
        actions: one entry for each guard that acted.
    """

    vector: Vector | None = None
    restored_step: int | None = None
    stop: str = ""
    actions: list[Action] = field(default_factory=list)


def run_hook(guard: Guard, hook: str, view: GuardView) -> GuardOutcome:
    """Run one hook of all active guards in order, up to the first that restores an earlier state.

    Args:
        hook: "gradients", "update" or "visit" (after a probe evaluation).
    """
    outcome = GuardOutcome()
    for leaf in guard.active_guards(view):
        began = time.perf_counter()
        proposal = HOOKS[hook](leaf, view)
        if proposal is None:
            continue
        shadowed = leaf.shadow or guard.shadow
        detail = f"shadow: {proposal.detail}" if shadowed else proposal.detail
        if leaf.left_out:
            detail += f"; left out, because not finite: {', '.join(leaf.left_out)}"
        applied = False if shadowed else _apply_proposal(proposal, outcome)
        if outcome.vector is not None:
            view = replace(view, vector=as_sharded(outcome.vector, view.parameters))
        seconds = time.perf_counter() - began
        numbers = (proposal.before, proposal.after, seconds)
        outcome.actions.append(Action(view.step, leaf.label, hook, applied, detail, *numbers))
        if outcome.restored_step is not None:
            break
    return outcome


def _apply_proposal(proposal: Proposal, outcome: GuardOutcome) -> bool:
    """Apply a proposal to the outcome; return True if it changes training."""
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

    A parameter without `.grad` gets one only if its new gradient is not 0; otherwise the optimizer
    would start to decay it.
    """
    for parameter, part in zip(parameters, vector, strict=True):
        new = to_local(part)
        new = new if scale == 1.0 else new * scale
        if parameter.grad is not None and parameter.grad.layout == torch.sparse_coo:
            # Optimizers such as SparseAdam take sparse gradients only.
            parameter.grad = new.to_sparse(parameter.grad.sparse_dim())
        elif parameter.grad is not None:
            to_local(parameter.grad).copy_(new)
        elif bool(new.any()):
            parameter.grad = torch.zeros_like(parameter)
            to_local(parameter.grad).copy_(new)


@torch.no_grad()
def write_update(
    parameters: Sequence[Tensor], before: Vector, update: Vector, applied: Vector
) -> None:
    """Set the parameters to `before` + `update`.

    Args:
        applied: the update of the optimizer. A parameter whose entry in `update` is the same tensor
            is left unchanged, because before + (after − before) would round.
    """
    for parameter, start, part, own in zip(parameters, before, update, applied, strict=True):
        if part is not own:
            to_local(parameter).copy_(to_local(start) + to_local(part))
