"""Norms of gradients and updates; ‖g_b‖ at the start is the depth of a behavior."""

from __future__ import annotations

from riprap.evaluation import loss_gradient
from riprap.linalg import norm
from riprap.signals._base import (
    ProbeView,
    Signal,
    StepView,
    not_run_without_gradient,
    not_run_without_losses,
)
from riprap.types import RUN, Reading


class Norms(Signal):
    """Norms: ‖g‖ and ‖Δθ‖ at every step, ‖h_b‖ at gradient refreshes, ‖g_b‖ once at the start.

    ‖g_b‖ at the start is the depth of a behavior: smaller is deeper.
    """

    name = "norms"
    every_step = True

    def on_gradient(self, view: StepView) -> list[Reading]:
        """Return ‖g‖ as the optimizer is about to use it, after clipping and unscaling."""
        if view.gradient is None:
            return []
        return [Reading.of(view.step, RUN, "norm_gradient", view.gradient_norm)]

    def on_update(self, view: StepView) -> list[Reading]:
        """Return ‖Δθ‖."""
        if view.update is None:
            return []
        return [Reading.of(view.step, RUN, "norm_update", view.flat_update.norm())]

    def on_probe_evaluation(self, view: ProbeView) -> list[Reading]:
        """Return ‖h_b‖ if it is fresh, and at the start the depth ‖g_b‖."""
        readings = [
            Reading.of(view.step, name, "norm_margin_gradient", length)
            for name, length in view.protected_gradients.margin_gradients.norms.items()
            if view.protected_gradients.step == view.step
        ]
        missing = not_run_without_gradient(view, "norm_margin_gradient")
        return readings + missing + (self._depth_readings(view) if view.step == 0 else [])

    def _depth_readings(self, view: ProbeView) -> list[Reading]:
        readings = not_run_without_losses(view, "depth")
        for behavior in view.behaviors:
            gradient = loss_gradient(behavior, view.model, view.parameters)
            if gradient is not None:
                readings.append(Reading.of(0, behavior.name, "depth", float(norm(gradient))))
        return readings
