"""Lisa: alternate between phases of task steps and phases of protected steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from riprap.evaluation import Loss
from riprap.guards._base import GuardView, Proposal
from riprap.guards.replay._batches import BatchCycler, BatchGuard
from riprap.linalg import Vector, add, as_sharded, clone, norm, subtract


@dataclass
class Lisa(BatchGuard):
    """For `protected_steps` steps use g_p + ρ(θ − θ_s), for the next `task_steps` g + ρ(θ − θ_s).

    θ_s is θ at the start of the phase, and g_p is the gradient on the next protected batch. It
    replaces the task gradient: the task's batches of protected steps are not learned from, so give
    the run as many extra steps. The proximal term ρ/2 ‖θ − θ_s‖² keeps a phase from undoing the
    previous one. The first phase is a protected one, as in the paper and in the authors' trainer,
    so that a run shorter than `task_steps` has one too.

    Args:
        batches: protected batches, read in turn.
        loss: loss(model, batch), a scalar; None: the model's own, `model(**batch).loss`.
        task_steps, protected_steps: lengths of the phases: a tenth of the paper's 900 and 100, so
            that a run of some hundred steps has several protected phases.
        rho: ρ.
        max_pull: the longest ρ(θ − θ_s), as a share of the gradient's length; None: any length, as
            in the paper. On small models ρ = 1 would stop the task.

    Source: Huang et al., 2405.18641, algorithm 1, with ρ = 1. Variant: the proximal term has a
    longest length (`max_pull`); protected steps use evaluation mode, and share the optimizer's
    state with the task steps. The authors' trainer also leaves out the proximal term in the first
    tenth of a run, whose length a guard does not know.

    Raises:
        ConfigError: there is no batch, a phase has no step, or ρ is negative; in `start`, the
            batches have no loss, or it depends on no trained parameter.
    """

    loss: Loss | None = None
    task_steps: int = 90
    protected_steps: int = 10
    rho: float = 1.0
    max_pull: float | None = field(default=0.1, kw_only=True)
    anchor: Vector = field(default_factory=list, init=False, repr=False)
    protecting: bool = field(default=False, init=False, repr=False)

    name: ClassVar[str] = "lisa"
    field_of_origin: ClassVar[str] = "safety"
    source: ClassVar[str] = "2405.18641"
    fidelity: ClassVar[str] = "variant"
    may_increase_norm: ClassVar[bool] = True
    state_attrs: ClassVar[tuple[str, ...]] = ("anchor", "protecting")

    def __post_init__(self) -> None:
        self.cycler = BatchCycler(self.name, self.batches, self.loss)
        if min(self.task_steps, self.protected_steps) < 1 or self.rho < 0:
            raise self._error(
                f"task_steps={self.task_steps}, protected_steps={self.protected_steps}, "
                f"rho={self.rho}; each phase needs a step, and rho must be 0 or more"
            )
        if self.max_pull is not None and not self.max_pull > 0:
            raise self._error(f"max_pull={self.max_pull}; it must be above 0, or None")

    def start(self, view: GuardView) -> None:
        """Check the protected loss, and store θ₀ as the start of the first phase."""
        self.cycler.check(view.model, view.parameters)
        self.anchor = clone(view.parameters)

    def extend(self, view: GuardView, joined: Sequence[int]) -> None:
        """Start the phase of the parameters that join at their present values."""
        for index in joined:
            self.anchor.insert(index, view.parameters[index].detach().clone())

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Use the protected gradient in a protected phase, and add the proximal term."""
        cycle = self.protected_steps + self.task_steps
        protecting = (view.step - 1) % cycle < self.protected_steps
        if protecting != self.protecting:
            self.anchor, self.protecting = clone(view.parameters), protecting
        gradient, before = view.vector, {"norm": float(norm(view.vector))}
        if protecting:
            loss, gradient = self.cycler.gradient(view.model, view.parameters)
            before["protected_loss"] = loss
            if not bool(torch.isfinite(norm(gradient))):
                detail = "nothing was done: the protected gradient is not finite"
                return Proposal(detail=detail, before=before)
        shift = subtract(view.parameters, self.anchor)
        drift, rho = float(norm(shift)), self.rho
        if self.max_pull is not None and rho * drift > 0:
            rho = min(rho, self.max_pull * float(norm(gradient)) / drift)
        vector = as_sharded(add(gradient, shift, rho), view.parameters)
        after = {"norm": float(norm(vector)), "drift": drift}
        if not protecting and (self.rho == 0 or after["drift"] == 0):
            detail = "nothing to do: a task step at the start of its phase"
            return Proposal(detail=detail, before=before, after=after)
        detail = "a task step, with a pull toward the start of its phase"
        if protecting:
            detail = "a protected step: learned from a protected batch instead of the task's"
        return Proposal(vector, detail, before, after)
