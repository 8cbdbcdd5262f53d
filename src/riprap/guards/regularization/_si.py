"""SI: the importance of a weight is what moving it did to a loss, summed along the path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from riprap.errors import ConfigError
from riprap.guards._base import GuardView, Proposal
from riprap.guards.regularization._penalty import BehaviorGuard, Penalty, quadratic_penalty
from riprap.linalg import Vector, clone, subtract, upcast_vector


@dataclass
class SI(Penalty, BehaviorGuard):
    """Adds λ Σ_i Ω_i (θ_i − θ*_i)², Ω = max(ω, 0) / (Δ² + ξ), Δ the way since the last θ*.

    `of="task"` is the paper's: train a task that is to be kept under the guard, and
    ω_i = −Σ g_i Δθ_i says what each weight did for it. At `consolidate()` Ω grows by it, θ* ← θ,
    and ω begins anew; from the next step on the penalty holds.

    `of="protected"` is for the usual case that no such path was seen: the model comes trained. Then
    ω_i = +Σ g_b,i Δθ_i with g_b the gradient of the protected losses, so that ω says what each
    weight's way along this very run has cost the behaviours, and those weights are pulled back.

    Args:
        of: "protected" or "task".
        xi: the damping ξ, in units of θ².
        refresh: protected gradients are taken afresh at least so often, in steps.

    Source: Zenke et al., 1703.04200, eq. 4 and 5. Variant unless `of="task"`.

    Raises:
        ConfigError: `of` is neither, `xi` is not above 0, or (at the start) a behaviour has no
            losses.
    """

    of: str = "protected"
    xi: float = 0.1
    refresh: int | None = field(default=20, kw_only=True)
    path_integral: Vector = field(default_factory=list, init=False, repr=False)
    consolidated_importance: Vector = field(default_factory=list, init=False, repr=False)
    anchor: Vector = field(default_factory=list, init=False, repr=False)
    consolidation_due: bool = field(default=False, init=False, repr=False)
    task_gradient: Vector | None = field(default=None, init=False, repr=False)

    name: ClassVar[str] = "si"
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "1703.04200"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = ("path_integral", "consolidated_importance", "anchor", "consolidation_due")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of not in ("protected", "task") or not self.xi > 0:
            raise ConfigError(
                f"guard {self.name}: of={self.of!r}, xi={self.xi}; choose 'protected' or 'task', "
                "and a damping above 0"
            )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The protected gradients that it reads."""
        return frozenset(["loss"] if self.of == "protected" else [])

    def start(self, view: GuardView) -> None:
        """Begin the path here."""
        if self.of == "protected":
            self.select_behaviors(view)
            lacking = [name for name in self.names if name not in view.protected_gradients.loss_gradients.names]
            if lacking:
                raise ConfigError(
                    f"guard {self.name}: behaviour {lacking[0]!r} has no losses that reach a "
                    "trained parameter; give Behavior(losses=...)"
                )
        if self.consolidation_due and len(self.path_integral) == len(view.parameters):
            self._consolidate_now(view)  # the guard of an earlier run, whose task is now to be kept
            return
        self.anchor = clone(view.parameters)
        self.path_integral = [torch.zeros_like(part) for part in upcast_vector(view.parameters)]
        self.consolidated_importance = [torch.zeros_like(part) for part in self.path_integral]

    def consolidate(self) -> None:
        """Keep what is important by now and begin a new path, before the next step.

        The next step may be one of another run, under the same guard.
        """
        self.consolidation_due = True

    def _consolidate_now(self, view: GuardView) -> None:
        torch._foreach_add_(self.consolidated_importance, self.importance(view))
        self.anchor, self.consolidation_due = clone(view.parameters), False
        torch._foreach_zero_(self.path_integral)

    def importance(self, view: GuardView) -> Vector:
        """max(ω, 0) / (Δ² + ξ) of the path under way."""
        way = upcast_vector(subtract(view.parameters, self.anchor))
        damped = torch._foreach_add(torch._foreach_mul(way, way), self.xi)
        return list(torch._foreach_div(torch._foreach_clamp_min(self.path_integral, 0.0), damped))

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Σ Ω (θ − θ*)² and 2 Ω (θ − θ*)."""
        if self.consolidation_due:
            self._consolidate_now(view)
        weights = self.consolidated_importance
        if self.of == "protected":
            weights = list(torch._foreach_add(self.consolidated_importance, self.importance(view)))
        return quadratic_penalty(1.0, weights, view.parameters, self.anchor)

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Add the penalty's gradient; the task's own is kept for ω."""
        if self.of == "task":
            # Copied, since the penalty is about to be written over it.
            self.task_gradient = [part.clone() for part in upcast_vector(view.vector)]
        return super().on_gradients(view)

    def on_update(self, view: GuardView) -> Proposal | None:
        """Go on with ω."""
        sign, gradient = -1.0, self.task_gradient
        self.task_gradient = None
        if self.of == "protected":
            sign = 1.0
            present = [name for name in self.names if name in view.protected_gradients.loss_gradients.names]
            nothing = [torch.zeros_like(part) for part in self.path_integral]
            gradient = view.protected_gradients.loss_gradients.add_combination(nothing, dict.fromkeys(present, 1.0))
        if gradient is not None:
            torch._foreach_addcmul_(self.path_integral, gradient, upcast_vector(view.vector), value=sign)
        return None
