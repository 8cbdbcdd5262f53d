"""Lisa: stretches of the task and of protected batches alternate, each held near its beginning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from riprap.errors import ConfigError
from riprap.guards._base import GuardView, Proposal
from riprap.guards.replay._batches import FromBatches
from riprap.linalg import Vector, add, as_sharded, clone, norm, subtract


@dataclass
class Lisa(FromBatches):
    """On `task_steps` steps g + ρ(θ − θ_s), on the next `protected_steps` g_p + ρ(θ − θ_s).

    θ_s is where the stretch began, and g_p the gradient of the next protected batch, which takes
    the place of the task's: the task's batch of such a step is not learned from, so give the run as
    many steps more. The proximal term ρ/2 ‖θ − θ_s‖² keeps a stretch from undoing the last one.

    Args:
        task_steps, protected_steps: lengths of the stretches. The paper's 900 and 100, by a tenth:
            a run of some hundred steps would never come to its first protected one.
        rho: ρ.

    Source: Huang et al., 2405.18641, algorithm 1, with ρ = 1. Simplified: protected steps are taken
    in evaluation mode, and with the optimizer's state of the task's.

    Raises:
        ConfigError: no batch, a stretch without a step, or a negative ρ.
    """

    task_steps: int = 90
    protected_steps: int = 10
    rho: float = 1.0
    anchor: Vector = field(default_factory=list, init=False, repr=False)
    protecting: bool = field(default=False, init=False, repr=False)

    name: ClassVar[str] = "lisa"
    field_of_origin: ClassVar[str] = "safety"
    source: ClassVar[str] = "2405.18641"
    fidelity: ClassVar[str] = "simplified"
    may_increase_norm: ClassVar[bool] = True
    state_attrs: ClassVar[tuple[str, ...]] = ("anchor", "protecting")

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.task_steps, self.protected_steps) < 1 or self.rho < 0:
            raise ConfigError(
                f"guard {self.name}: task_steps={self.task_steps}, protected_steps="
                f"{self.protected_steps}, rho={self.rho}; each stretch needs a step, and rho must "
                "not be negative"
            )

    def start(self, view: GuardView) -> None:
        """The first stretch begins at θ₀.

        Raises:
            ConfigError: the protected batches have no loss, or one of no trained parameter.
        """
        self.protected.check(view.model, view.parameters)
        self.anchor = clone(view.parameters)

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Put the protected gradient in the task's place, or leave it, and add the pull."""
        protecting = (view.step - 1) % (self.task_steps + self.protected_steps) >= self.task_steps
        if protecting != self.protecting:
            self.anchor, self.protecting = clone(view.parameters), protecting
        gradient, before = view.vector, {"norm": float(norm(view.vector))}
        if protecting:
            loss, gradient = self.protected.gradient(view.model, view.parameters)
            before["protected_loss"] = loss
            if not bool(torch.isfinite(norm(gradient))):
                return Proposal(detail="the protected gradient is not finite", before=before)
        away = subtract(view.parameters, self.anchor)
        vector = as_sharded(add(gradient, away, self.rho), view.parameters)
        drift = float(norm(away))
        after = {"norm": float(norm(vector)), "drift": drift}
        what = "a protected step" if protecting else "a task step"
        if not protecting and (self.rho == 0 or drift == 0):
            return Proposal(detail=f"{what}, nothing to add", before=before, after=after)
        return Proposal(vector, what, before, after)
