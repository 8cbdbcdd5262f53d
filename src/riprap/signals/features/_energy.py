"""Energy ratio: share of a behavior's activations in its principal subspace of the start."""

from __future__ import annotations

from torch import Tensor

from riprap.behaviors import Behavior
from riprap.signals._base import FeatureSignal, ProbeView
from riprap.signals.features._directions import energy_ratio, principal_directions
from riprap.types import Reading


class Energy(FeatureSignal):
    """Ratio ‖Π_U a‖² / ‖a‖², U = top-k principal directions of the activations at θ₀ (ours)."""

    name = "energy_ratio"
    state_attrs = ("bases",)

    def __init__(self) -> None:
        self.bases: dict[str, Tensor] = {}

    def start(self, view: ProbeView) -> None:
        """Compute the subspace of each behavior."""
        for behavior in view.behaviors:
            activations = self.activations(view, behavior.name)
            if activations is not None:
                self.bases[behavior.name] = principal_directions(activations)

    def read(self, view: ProbeView, behavior: Behavior, activations: Tensor) -> list[Reading]:
        """Return the ratio, between 0 and 1."""
        ratio = float(energy_ratio(activations, self.bases[behavior.name]))
        return [Reading.of(view.step, behavior.name, self.name, ratio, "share", view.layer or "")]
