"""Cosines between the task gradient and protected gradients."""

from __future__ import annotations

from riprap.linalg import VectorStack
from riprap.signals._base import (
    ProbeView,
    Signal,
    StepView,
    not_run_without_gradient,
    not_run_without_losses,
)
from riprap.types import Reading


def _cosine_readings(
    view: StepView, protected: VectorStack, signal: str, sign: float
) -> list[Reading]:
    if view.gradient is None:
        return []
    readings = []
    for name, product in protected.inner_products(view.flat_gradient).items():
        norms = view.gradient_norm * protected.norms[name]
        cosine = sign * product / norms if norms else float("nan")
        readings.append(Reading.of(view.step, name, signal, cosine, "cosine"))
    return readings


class MarginCosine(Signal):
    """Cosine cos(−g, h_b) at every step: positive where a descent step raises the margin."""

    name = "cosine_margin"

    def on_gradient(self, view: StepView) -> list[Reading]:
        """Return one reading for each behavior with a differentiable margin."""
        return _cosine_readings(view, view.protected_gradients.margin_gradients, self.name, -1.0)

    def on_probe_evaluation(self, view: ProbeView) -> list[Reading]:
        """Return `NOT_RUN` readings at the start for behaviors without this gradient."""
        return not_run_without_gradient(view, self.name)


class LossCosine(Signal):
    """Cosine cos(g, g_b) at every step, the one most papers use."""

    name = "cosine_loss"
    needs_loss_gradient = True

    def on_gradient(self, view: StepView) -> list[Reading]:
        """Return one reading for each behavior with losses."""
        return _cosine_readings(view, view.protected_gradients.loss_gradients, self.name, 1.0)

    def on_probe_evaluation(self, view: ProbeView) -> list[Reading]:
        """Return `NOT_RUN` readings at the start for behaviors without this gradient."""
        return not_run_without_losses(view, self.name)
