"""Interference: what an update is predicted to do to a behaviour's mean margin."""

from __future__ import annotations

from riprap.signals._base import Signal, StepView, ProbeView, not_run_without_gradient
from riprap.types import Reading


class Interference(Signal):
    """r_b = ⟨h_b, Δθ⟩, in units of the margin, at every step (ours).

    h_b is the one of the last visit, so a reading is as good as h_b is fresh.
    """

    name = "interference"

    def on_update(self, view: StepView) -> list[Reading]:
        """One reading a behaviour with a differentiable margin."""
        if view.update is None:
            return []
        return [
            Reading.of(view.step, name, self.name, value, "margin")
            for name, value in view.protected_gradients.margin_gradients.inner_products(view.flat_update).items()
        ]

    def on_probes(self, view: ProbeView) -> list[Reading]:
        """At the start, which behaviours it cannot be read for."""
        return not_run_without_gradient(view, self.name)
