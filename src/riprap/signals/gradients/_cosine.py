"""Cosines of the task gradient with protected gradients."""

from __future__ import annotations

from riprap.linalg import VectorStack
from riprap.signals._base import (
    Signal,
    StepView,
    ProbeView,
    not_run_without_losses,
    not_run_without_gradient,
)
from riprap.types import Reading


def _cosine_readings(view: StepView, protected: VectorStack, signal: str, sign: float) -> list[Reading]:
    if view.gradient is None:
        return []
    readings = []
    for name, product in protected.inner_products(view.flat_gradient).items():
        both = view.gradient_norm * protected.norms[name]
        cosine = sign * product / both if both else float("nan")
        readings.append(Reading.of(view.step, name, signal, cosine, "cosine"))
    return readings


class MarginCosine(Signal):
    """cos(−g, h_b): does descending the task's loss raise the margin? At every step."""

    name = "cosine_margin"

    def on_gradient(self, view: StepView) -> list[Reading]:
        """One reading a behaviour with a differentiable margin."""
        return _cosine_readings(view, view.protected_gradients.margin_gradients, self.name, -1.0)

    def on_probes(self, view: ProbeView) -> list[Reading]:
        """At the start, which behaviours it cannot be read for."""
        return not_run_without_gradient(view, self.name)


class LossCosine(Signal):
    """cos(g, g_b), the cosine that most of the literature reads; at every step."""

    name = "cosine_loss"
    needs_loss_gradient = True

    def on_gradient(self, view: StepView) -> list[Reading]:
        """One reading a behaviour with losses."""
        return _cosine_readings(view, view.protected_gradients.loss_gradients, self.name, 1.0)

    def on_probes(self, view: ProbeView) -> list[Reading]:
        """At the start, which behaviours it cannot be read for."""
        return not_run_without_losses(view, self.name)
