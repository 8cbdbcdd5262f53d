"""Interference: the predicted change of a behavior's mean margin by the applied updates."""

from __future__ import annotations

from riprap.signals._base import ProbeView, Signal, StepView, not_run_without_gradient
from riprap.types import Reading


class Interference(Signal):
    """Interference ⟨h_b, θ_t − θ_s⟩, in units of the margin (ours); s is the reading before.

    The sum of ⟨h_b, Δθ⟩ over the steps since the reading before, for the price of one product. h_b
    is that of the last gradient refresh: the older it is, the less accurate the reading.

    Args:
        every_step: read each step by itself; see `Signal`.
    """

    name = "interference"

    def __init__(self, every_step: bool = False) -> None:
        self.every_step = every_step

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
