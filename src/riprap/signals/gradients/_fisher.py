"""Fisher cosine: gradient conflict weighted by the behavior's Fisher information."""

from __future__ import annotations

import torch

from riprap.evaluation import fisher_diagonal
from riprap.linalg import Vector, dot
from riprap.signals._base import ProbeView, Signal, StepView, not_run_without_losses
from riprap.types import Reading


def fisher_cosine(task: Vector, protected: Vector, fisher: Vector) -> float:
    """Compute gᵀF g_b / √(gᵀFg · g_bᵀF g_b), F diagonal, ≥ 0 (ours); NaN where undefined."""
    weighted = torch._foreach_mul(fisher, protected)
    across = float(dot(task, weighted))
    own = float(dot(protected, weighted))
    other = float(dot(task, list(torch._foreach_mul(fisher, task))))
    scale = (own * other) ** 0.5
    return across / scale if scale > 0 else float("nan")


class FisherCosine(Signal):
    """Fisher cosine with F the diagonal empirical Fisher of the behavior at θ₀.

    Costs one backward pass per probe at the start, and a copy of the parameters per behavior.
    """

    name = "cosine_fisher"
    per_parameter = True
    needs_loss_gradient = True
    state_attrs = ("fishers",)

    def __init__(self) -> None:
        self.fishers: dict[str, Vector] = {}

    def start(self, view: ProbeView) -> None:
        """Estimate the Fisher information of each behavior."""
        for behavior in view.behaviors:
            fisher = fisher_diagonal(behavior, view.model, view.parameters)
            if fisher is not None:
                self.fishers[behavior.name] = fisher

    def on_probe_evaluation(self, view: ProbeView) -> list[Reading]:
        """Return `NOT_RUN` readings at the start for behaviors without losses."""
        return not_run_without_losses(view, self.name)

    def on_gradient(self, view: StepView) -> list[Reading]:
        """Return one reading for each behavior with losses."""
        if view.gradient is None:
            return []
        stack, readings = view.protected_gradients.loss_gradients, []
        for name, fisher in self.fishers.items():
            if name in stack.names:
                value = fisher_cosine(view.gradient, stack.vector(name, view.gradient), fisher)
                readings.append(Reading.of(view.step, name, self.name, value, "cosine"))
        return readings
