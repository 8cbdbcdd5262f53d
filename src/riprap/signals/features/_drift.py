"""Drift: change of mean activation and direction since the start, with its noise level."""

from __future__ import annotations

from torch import Tensor

from riprap.behaviors import Behavior
from riprap.signals._base import FeatureSignal, ProbeView
from riprap.signals.features._directions import cosine_distance, unit_difference
from riprap.types import Reading


class Drift(FeatureSignal):
    """Drift ‖ā_t − ā_0‖ / ‖ā_0‖, and 1 − cos(v_t, v_0) with the direction v re-estimated.

    A re-estimated direction has estimation noise. `drift_noise`, read at θ₀, is its level: 1 − cos
    between the directions of the even and of the odd probes.
    """

    name = "drift_mean"
    state_attrs = ("means", "directions", "noise")

    def __init__(self) -> None:
        self.means: dict[str, Tensor] = {}
        self.directions: dict[str, Tensor] = {}
        self.noise: dict[str, float] = {}

    def start(self, view: ProbeView) -> None:
        """Store means and directions, and measure the split-half noise."""
        for behavior in view.behaviors:
            here = self.activations(view, behavior.name)
            there = self.activations(view, behavior.contrast)
            if here is None:
                continue
            self.means[behavior.name] = here.mean(0)
            if there is not None and min(len(here), len(there)) > 1:
                self.directions[behavior.name] = unit_difference(here, there)
                even = unit_difference(here[::2], there[::2])
                odd = unit_difference(here[1::2], there[1::2])
                self.noise[behavior.name] = float(cosine_distance(even, odd))

    def read(self, view: ProbeView, behavior: Behavior, activations: Tensor) -> list[Reading]:
        """Return the relative shift of the mean, and the drift of the direction if any."""
        name, layer = behavior.name, view.layer or ""
        first = self.means[name]
        shift = float((activations.mean(0) - first).norm() / first.norm())
        readings = [Reading.of(view.step, name, self.name, shift, "of start", layer)]
        there = self.activations(view, behavior.contrast)
        if name in self.directions and there is not None:
            now = unit_difference(activations, there)
            turned = float(cosine_distance(now, self.directions[name]))
            readings.append(Reading.of(view.step, name, "drift_direction", turned, "1-cos", layer))
            if view.step == 0:
                noise = self.noise[name]
                readings.append(Reading.of(view.step, name, "drift_noise", noise, "1-cos", layer))
        return readings
