"""Cosines of the task gradient with protected gradients."""

from __future__ import annotations

from riprap.linalg import Stack
from riprap.signals._base import (
    Signal,
    StepView,
    VisitView,
    without_losses,
    without_margin_gradient,
)
from riprap.types import Reading


def _cosines(view: StepView, protected: Stack, signal: str, sign: float) -> list[Reading]:
    if view.gradient is None:
        return []
    readings = []
    for name, product in protected.dots(view.joined_gradient).items():
        both = view.gradient_norm * protected.norms[name]
        cosine = sign * product / both if both else float("nan")
        readings.append(Reading.of(view.step, name, signal, cosine, "cosine"))
    return readings


class MarginCosine(Signal):
    """cos(−g, h_b): does descending the task's loss raise the margin? At every step."""

    name = "cosine_margin"

    def on_gradient(self, view: StepView) -> list[Reading]:
        """One reading a behaviour with a differentiable margin."""
        return _cosines(view, view.held.margin, self.name, -1.0)

    def on_visit(self, view: VisitView) -> list[Reading]:
        """At the start, which behaviours it cannot be read for."""
        return without_margin_gradient(view, self.name)


class LossCosine(Signal):
    """cos(g, g_b), the cosine that most of the literature reads; at every step."""

    name = "cosine_loss"
    needs_loss_gradient = True

    def on_gradient(self, view: StepView) -> list[Reading]:
        """One reading a behaviour with losses."""
        return _cosines(view, view.held.loss, self.name, 1.0)

    def on_visit(self, view: VisitView) -> list[Reading]:
        """At the start, which behaviours it cannot be read for."""
        return without_losses(view, self.name)
