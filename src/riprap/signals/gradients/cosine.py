"""Cosines of the task gradient with protected gradients."""

from __future__ import annotations

from riprap.evidence import Reading
from riprap.signals.base import Signal, StepView
from riprap.tensors import Vector, dots, norm


def _cosines(
    view: StepView, protected: dict[str, Vector], signal: str, sign: float
) -> list[Reading]:
    if view.gradient is None or not protected:
        return []
    length = float(norm(view.gradient))
    values = dots(view.gradient, list(protected.values())).tolist()
    readings = []
    for (name, vector), value in zip(protected.items(), values, strict=True):
        both = length * float(norm(vector))
        cosine = sign * value / both if both else float("nan")
        readings.append(Reading.of(view.step, name, signal, cosine, "cosine"))
    return readings


class MarginCosine(Signal):
    """cos(−g, h_b): does descending the task's loss raise the margin? At every step."""

    name = "cosine_margin"

    def on_gradient(self, view: StepView) -> list[Reading]:
        """One reading a behaviour with a differentiable margin."""
        held = {name: h.margin for name, h in view.held.items() if h.margin is not None}
        return _cosines(view, held, self.name, -1.0)


class LossCosine(Signal):
    """cos(g, g_b), the cosine that most of the literature reads; at every step."""

    name = "cosine_loss"
    needs_loss_gradient = True

    def on_gradient(self, view: StepView) -> list[Reading]:
        """One reading a behaviour with losses."""
        held = {name: h.loss for name, h in view.held.items() if h.loss is not None}
        return _cosines(view, held, self.name, 1.0)
