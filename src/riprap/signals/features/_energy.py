"""Energy ratio: how much of a behaviour's activations still lies in its subspace of the start."""

from __future__ import annotations

from torch import Tensor

from riprap.behaviors import Behavior
from riprap.signals._base import FeatureSignal, ProbeView
from riprap.signals.features._directions import energy_ratio, principal_directions
from riprap.types import Reading


class Energy(FeatureSignal):
    """‖Π_U a‖² / ‖a‖², U = top-k principal directions of the activations at θ₀ (ours)."""

    name = "energy_ratio"

    def __init__(self) -> None:
        self.bases: dict[str, Tensor] = {}

    def start(self, view: ProbeView) -> None:
        """Fix each behaviour's subspace."""
        for behavior in view.behaviors:
            activations = self.activations(view, behavior.name)
            if activations is not None:
                self.bases[behavior.name] = principal_directions(activations)

    def read(self, view: ProbeView, behavior: Behavior, activations: Tensor) -> list[Reading]:
        """The ratio, between 0 and 1."""
        ratio = float(energy_ratio(activations, self.bases[behavior.name]))
        return [Reading.of(view.step, behavior.name, self.name, ratio, "share", view.layer or "")]
