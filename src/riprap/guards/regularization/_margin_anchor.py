"""Margin anchor: hold the weights on which margins depend, where they were when it first acts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from riprap._warnings import warn
from riprap.errors import BehaviorError
from riprap.evaluation import fisher_diagonal
from riprap.guards._base import BehaviorGuard, GuardView, Proposal
from riprap.guards.regularization._penalty import Penalty, quadratic_penalty
from riprap.linalg import Vector, clone, sum_vectors

STABLE = 0.5  # largest pull of one step of plain descent, as a share of the way back


@dataclass
class MarginAnchor(Penalty, BehaviorGuard):
    """Penalty λ/2 Σ_i F_i (θ_i − θ*_i)², with F_i the mean of (∂m/∂θ_i)² / m̄² over the probes.

    m is a probe's margin and m̄ the mean size of the behavior's margins before training: to first
    order, and with independent weights, the penalty is λ/2 times the mean squared change of the
    margins, relative to their size. F is the mean over behaviors. F and θ* are those of the first
    step at which the guard acts: until then it takes no memory and no time. After EWC (1612.00796),
    of margins instead of losses: they do not vanish where the model is certain.

    Args:
        strength: the factor λ, in nats.
        max_pull: as for all penalties; by default half of the gradient's length, so that the guard
            slows new learning and does not stop it.

    A variant, ours.
    """

    strength: float = 20.0
    max_pull: float | None = field(default=0.5, kw_only=True)
    fisher: Vector = field(default_factory=list, init=False, repr=False)
    anchor: Vector = field(default_factory=list, init=False, repr=False)
    unavailable: str = field(default="", init=False, repr=False)

    name: ClassVar[str] = "margin_anchor"
    goal: ClassVar[str] = "the weights of the first replay"
    source: ClassVar[str] = "ours, after 1612.00796"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = ("fisher", "anchor", "unavailable")

    def start(self, view: GuardView) -> None:
        """Store the names of the behaviors."""
        self.select_behaviors(view)

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Measure F at the first call, and add the penalty's gradient."""
        if self.unavailable:
            return None
        if not self.fisher:
            try:
                self.fisher = self._relative_fisher(view)
            except BehaviorError as error:
                self.unavailable = f"weights are not anchored: {error}"
                warn(f"guard {self.name}: {self.unavailable}")
                return Proposal(detail=self.unavailable)
            self.anchor = clone(view.parameters)
        return super().on_gradients(view)

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Compute ½ Σ F (θ − θ*)² and its gradient."""
        return quadratic_penalty(0.5, self.fisher, view.parameters, self.anchor)

    def _relative_fisher(self, view: GuardView) -> Vector:
        """Estimate F, limited so that one step of plain descent does not go beyond θ*."""
        estimates = {}
        for name in self.names:
            behavior = view.behaviors[name]
            fisher = fisher_diagonal(behavior, view.model, view.parameters, of="margin")
            size = float(abs(view.histories[name].margins[0]).mean())
            if fisher is not None and size > 0:
                estimates[name] = list(torch._foreach_mul(fisher, size**-2))
        if not estimates:
            raise BehaviorError("no margin reaches a trained parameter")
        finite = self.finite_behaviors(estimates, "the sensitivity of the margins")
        total = sum_vectors([estimates[name] for name in finite])
        torch._foreach_div_(total, len(finite))
        factors = _largest_factors(view)
        limits = [factors[id(parameter)] / self.strength for parameter in view.parameters]
        return [part.clamp(max=limit) for part, limit in zip(total, limits, strict=True)]


def _largest_factors(view: GuardView) -> dict[int, float]:
    """Return the largest stable factor of θ − θ* for each trained parameter, by its id."""
    found = {}
    for group in view.optimizer.param_groups:
        rate = float(group["lr"]) / (1 - float(group.get("momentum", 0.0)))
        for parameter in group["params"]:
            found[id(parameter)] = STABLE / rate if rate > 0 else float("inf")
    return found
