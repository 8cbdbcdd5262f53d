"""Margin anchor: hold the weights on which margins depend, where they were when it first acts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from riprap._text import first_line
from riprap._warnings import warn
from riprap.errors import BehaviorError, ConfigError
from riprap.guards._base import BehaviorGuard, GuardView, Proposal
from riprap.guards.regularization._penalty import MAX_PULL, Penalty, quadratic_penalty
from riprap.linalg import Vector, clone, is_sharded, sum_vectors


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
        max_pull: as for all penalties on weights; a longer pull holds more and learns less.

    A variant, ours.
    """

    strength: float = 20.0
    max_pull: float | None = field(default=MAX_PULL, kw_only=True)
    fisher: Vector = field(default_factory=list, init=False, repr=False)
    anchor: Vector = field(default_factory=list, init=False, repr=False)
    unavailable: str = field(default="", init=False, repr=False)

    name: ClassVar[str] = "margin_anchor"
    goal: ClassVar[str] = "its anchor"
    source: ClassVar[str] = "ours, after 1612.00796"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = ("fisher", "anchor", "unavailable")

    def start(self, view: GuardView) -> None:
        """Store the names of the behaviors.

        Raises:
            ConfigError: the model is sharded over ranks.
        """
        super().start(view)
        self.select_behaviors(view)
        self.fisher, self.anchor, self.unavailable = [], [], ""
        if any(is_sharded(parameter) for parameter in view.parameters):
            raise self._error("a model sharded over ranks is not supported; use AGEM or KL")

    def extend(self, view: GuardView, joined: Sequence[int]) -> None:
        """Leave parameters that join free: no margin was measured on them."""
        for index in joined if self.anchor else ():
            self.anchor.insert(index, view.parameters[index].detach().clone())
        for index in joined if self.fisher else ():
            self.fisher.insert(index, torch.zeros_like(view.parameters[index]))

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Measure F at the first call, and add the penalty's gradient."""
        if self.unavailable:
            return Proposal(detail=self.unavailable)
        if not self.fisher:
            try:
                self.fisher = self._relative_fisher(view)
            except (BehaviorError, ConfigError) as error:
                why = first_line(error, "the margins cannot be read")
                self.unavailable = f"weights are not anchored: {why}"
                warn(f"guard {self.label}: {self.unavailable}; training goes on without")
                return Proposal(detail=self.unavailable)
            self.anchor = clone(view.parameters)
        return super().on_gradients(view)

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Compute ½ Σ F (θ − θ*)² and its gradient."""
        return quadratic_penalty(0.5, self.fisher, view.parameters, self.anchor)

    def _relative_fisher(self, view: GuardView) -> Vector:
        """Estimate F at the current parameters."""
        estimates = []
        for name, fisher in self.finite_fishers(view, "margin", required=False).items():
            size = float(abs(view.histories[name].margins[0]).mean())
            if size > 0:
                estimates.append(list(torch._foreach_mul(fisher, size**-2)))
        if not estimates:
            raise BehaviorError("no margin reaches a trained parameter")
        total = sum_vectors(estimates)
        torch._foreach_div_(total, len(estimates))
        return total
