"""SI: anchor each weight by its contribution to the change of a loss along the training path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from riprap.guards._base import BehaviorGuard, GuardView, Proposal
from riprap.guards.regularization._penalty import MAX_PULL, Penalty, quadratic_penalty
from riprap.linalg import Vector, clone, subtract, upcast_vector


@dataclass
class SI(Penalty, BehaviorGuard):
    """Penalty λ Σ_i Ω_i (θ_i − θ*_i)², with Ω = max(ω, 0) / (Δ² + ξ) and Δ = θ − θ*.

    `of="task"` is the paper's version: train the task to protect under the guard, and
    ω_i = −Σ g_i Δθ_i is each weight's contribution to it. `consolidate()` adds the result to Ω,
    sets θ* ← θ and resets ω; the penalty applies from the next step on.

    `of="protected"` is for a model that was trained before, without such a path. Then
    ω_i = +Σ g_b,i Δθ_i, with g_b the gradient of the protected losses, is the damage that each
    weight's movement in this run has done to the behaviors, and those weights are pulled back.

    Args:
        of: "protected" or "task".
        xi: the damping ξ, in units of θ².
        refresh: maximum age of the protected gradients, in steps.

    Source: Zenke et al., 1703.04200, eq. 4 and 5. Faithful with `of="task"`, otherwise a variant.

    Raises:
        ConfigError: `of` is neither, or `xi` is not above 0; in `start`, a behavior has no losses.
    """

    of: str = "protected"
    xi: float = 0.1
    max_pull: float | None = field(default=MAX_PULL, kw_only=True)
    refresh: int | None = field(default=20, kw_only=True)
    path_integral: Vector = field(default_factory=list, init=False, repr=False)
    consolidated_importance: Vector = field(default_factory=list, init=False, repr=False)
    anchor: Vector = field(default_factory=list, init=False, repr=False)
    consolidation_due: bool = field(default=False, init=False, repr=False)
    task_gradient: Vector | None = field(default=None, init=False, repr=False)

    name: ClassVar[str] = "si"
    goal: ClassVar[str] = "the initial weights, where their change did harm"
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "1703.04200"
    fidelity: ClassVar[str] = "variant"
    state_attrs = ("path_integral", "consolidated_importance", "anchor", "consolidation_due")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of not in ("protected", "task") or not self.xi > 0:
            values = f"of={self.of!r}, xi={self.xi}"
            raise self._error(f"{values}; choose 'protected' or 'task', and xi above 0")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Protected gradients that the guard reads."""
        return frozenset(["loss"] if self.of == "protected" else [])

    def start(self, view: GuardView) -> None:
        """Start the path at the current parameters."""
        super().start(view)
        if self.of == "protected":
            self.select_behaviors(view)
            available = view.protected_gradients.loss_gradients.names
            missing = [name for name in self.names if name not in available]
            if missing:
                raise self._error(
                    f"behavior {missing[0]!r} has no losses that reach a trained parameter; give "
                    "Behavior(losses=...)"
                )
        if self.consolidation_due and len(self.path_integral) == len(view.parameters):
            self._consolidate_now(view)  # this guard also ran during the previous task
            return
        self.anchor = clone(view.parameters)
        self.path_integral = [torch.zeros_like(part) for part in upcast_vector(view.parameters)]
        self.consolidated_importance = [torch.zeros_like(part) for part in self.path_integral]

    def extend(self, view: GuardView, joined: Sequence[int]) -> None:
        """Start the path of the parameters that join at their present values."""
        for index in joined:
            part = upcast_vector([view.parameters[index]])[0]
            self.anchor.insert(index, view.parameters[index].detach().clone())
            self.path_integral.insert(index, torch.zeros_like(part))
            self.consolidated_importance.insert(index, torch.zeros_like(part))

    def consolidate(self) -> None:
        """Request a consolidation before the next step, of this run or of the guard's next run."""
        self.consolidation_due = True

    def _consolidate_now(self, view: GuardView) -> None:
        torch._foreach_add_(self.consolidated_importance, self.importance(view))
        self.anchor, self.consolidation_due = clone(view.parameters), False
        torch._foreach_zero_(self.path_integral)

    def importance(self, view: GuardView) -> Vector:
        """Return max(ω, 0) / (Δ² + ξ) for the current path."""
        shift = upcast_vector(subtract(view.parameters, self.anchor))
        damped = torch._foreach_add(torch._foreach_mul(shift, shift), self.xi)
        return list(torch._foreach_div(torch._foreach_clamp_min(self.path_integral, 0.0), damped))

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Consolidate if it is due, then compute Σ Ω (θ − θ*)² and 2 Ω (θ − θ*)."""
        if self.consolidation_due:
            self._consolidate_now(view)
        weights = self.consolidated_importance
        if self.of == "protected":
            weights = list(torch._foreach_add(self.consolidated_importance, self.importance(view)))
        return quadratic_penalty(1.0, weights, view.parameters, self.anchor)

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Add the penalty's gradient; store the task gradient for ω."""
        if self.of == "task":
            # A copy: the penalty will overwrite the gradient.
            self.task_gradient = [part.clone() for part in upcast_vector(view.vector)]
        return super().on_gradients(view)

    def on_update(self, view: GuardView) -> Proposal | None:
        """Update ω."""
        sign, gradient = -1.0, self.task_gradient
        self.task_gradient = None
        if self.of == "protected":
            sign, stack = 1.0, view.protected_gradients.loss_gradients
            sick = stack.not_finite
            self.leave_out([name for name in self.names if name in sick], "the protected gradient")
            present = [name for name in self.names if name in stack.names and name not in sick]
            zeros = [torch.zeros_like(part) for part in self.path_integral]
            gradient = stack.add_combination(zeros, dict.fromkeys(present, 1.0))
        if gradient is not None:
            update = upcast_vector(view.vector)
            torch._foreach_addcmul_(self.path_integral, gradient, update, value=sign)
        return None
