"""Fisher cosine: conflict of gradients, weighted by what matters to the behaviour."""

from __future__ import annotations

import torch

from riprap.evaluation import fisher_diagonal
from riprap.linalg import Vector, dot
from riprap.signals._base import Signal, StepView, ProbeView, not_run_without_losses
from riprap.types import Reading


def fisher_cosine(task: Vector, protected: Vector, fisher: Vector) -> float:
    """gᵀF g_b / √(gᵀFg · g_bᵀF g_b), F diagonal and non-negative (ours); NaN where undefined."""
    weighted = torch._foreach_mul(fisher, protected)
    across = float(dot(task, weighted))
    own = float(dot(protected, weighted))
    other = float(dot(task, list(torch._foreach_mul(fisher, task))))
    scale = (own * other) ** 0.5
    return across / scale if scale > 0 else float("nan")


class FisherCosine(Signal):
    """The Fisher cosine with F the diagonal empirical Fisher of the behaviour at θ₀.

    Costs one backward pass a probe at the start, and a copy of the parameters a behaviour.
    """

    name = "cosine_fisher"
    needs_loss_gradient = True

    def __init__(self) -> None:
        self.fishers: dict[str, Vector] = {}

    def start(self, view: ProbeView) -> None:
        """Estimate each behaviour's Fisher."""
        for behavior in view.behaviors:
            fisher = fisher_diagonal(behavior, view.model, view.parameters)
            if fisher is not None:
                self.fishers[behavior.name] = fisher

    def on_probes(self, view: ProbeView) -> list[Reading]:
        """At the start, which behaviours it cannot be read for."""
        return not_run_without_losses(view, self.name)

    def on_gradient(self, view: StepView) -> list[Reading]:
        """One reading a behaviour with losses."""
        if view.gradient is None:
            return []
        return [
            Reading.of(
                view.step,
                name,
                self.name,
                fisher_cosine(view.gradient, view.protected_gradients.loss_gradients.vector(name, view.gradient), fisher),
                "cosine",
            )
            for name, fisher in self.fishers.items()
            if name in view.protected_gradients.loss_gradients.names
        ]
