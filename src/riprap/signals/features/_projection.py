"""Direction projection: mean activation along a behavior's direction of the start."""

from __future__ import annotations

from torch import Tensor

from riprap.behaviors import Behavior
from riprap.signals._base import FeatureSignal, ProbeView, not_run
from riprap.signals.features._directions import unit_difference
from riprap.types import Reading


class Projection(FeatureSignal):
    """Mean ⟨a, v⟩ and its ratio to the start, v = unit difference of means at θ₀.

    v points from the probes of `Behavior.contrast` to the behavior's own; without a contrast the
    signal is `NOT_RUN`. Source: Arditi et al., 2406.11717.
    """

    name = "projection"
    state_attrs = ("directions",)

    def __init__(self) -> None:
        self.directions: dict[str, tuple[Tensor, float]] = {}

    def start(self, view: ProbeView) -> None:
        """Compute the direction of each behavior."""
        for behavior in view.behaviors:
            here = self.activations(view, behavior.name)
            there = self.activations(view, behavior.contrast)
            if here is not None and there is not None:
                direction = unit_difference(here, there)
                self.directions[behavior.name] = direction, float((here @ direction).mean())

    def read(self, view: ProbeView, behavior: Behavior, activations: Tensor) -> list[Reading]:
        """Return the projection in units of the activations, and as a ratio to θ₀."""
        if behavior.name not in self.directions:
            reason = "no direction: name a monitored behavior as contrast, Behavior(contrast=...)"
            return [not_run(view.step, behavior.name, self.name, reason)] * (view.step == 0)
        direction, first = self.directions[behavior.name]
        value = float((activations @ direction).mean())
        layer = view.layer or ""
        return [
            Reading.of(view.step, behavior.name, self.name, value, "activation", layer),
            Reading.of(
                view.step,
                behavior.name,
                "projection_ratio",
                value / first if first else float("nan"),
                "of start",
                layer,
            ),
        ]
