"""Interference: the predicted change of a behavior's mean margin by an update."""

from __future__ import annotations

from riprap.signals._base import ProbeView, Signal, StepView, not_run_without_gradient
from riprap.types import Reading


class Interference(Signal):
    """Interference r_b = ⟨h_b, Δθ⟩, in units of the margin, at every step (ours).

    h_b is that of the last gradient refresh: the older it is, the less accurate the reading.
    """

    name = "interference"

    def on_update(self, view: StepView) -> list[Reading]:
        """Return one reading for each behavior with a differentiable margin."""
        if view.update is None:
            return []
        products = view.protected_gradients.margin_gradients.inner_products(view.flat_update)
        return [
            Reading.of(view.step, name, self.name, value, "margin")
            for name, value in products.items()
        ]

    def on_probe_evaluation(self, view: ProbeView) -> list[Reading]:
        """Return `NOT_RUN` readings at the start for behaviors with a detached margin."""
        return not_run_without_gradient(view, self.name)
