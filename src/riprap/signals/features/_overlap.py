"""Subspace overlap: similarity of the principal subspaces of two behaviors."""

from __future__ import annotations

from itertools import combinations

from riprap.signals._base import NO_LAYER, FeatureSignal, ProbeView, Signal, not_run
from riprap.signals.features._directions import N_DIRECTIONS, principal_directions, subspace_overlap
from riprap.types import RUN, Reading


class Overlap(Signal):
    """Mean squared cosine of the principal angles of each pair's top-k subspaces.

    k is limited by the behavior with the fewest probes. Compare with `subspace_overlap_chance`
    = k / d, the value of two random subspaces.
    """

    name = "subspace_overlap"

    def on_probe_evaluation(self, view: ProbeView) -> list[Reading]:
        """Return one reading per pair of behaviors, named `subspace_overlap:left|right`."""
        bases = {}
        for behavior in view.behaviors:
            activations = FeatureSignal.activations(view, behavior.name)
            if activations is not None:
                bases[behavior.name] = principal_directions(activations, N_DIRECTIONS)
        if view.layer is None and view.step == 0 and len(view.behaviors) > 1:
            return [not_run(0, RUN, self.name, NO_LAYER)]
        k = min((basis.shape[1] for basis in bases.values()), default=0)
        bases = {name: basis[:, :k] for name, basis in bases.items()}
        layer = view.layer or ""
        readings = [
            Reading.of(
                view.step,
                RUN,
                f"{self.name}:{left}|{right}",
                float(subspace_overlap(bases[left], bases[right])),
                "cos²",
                layer,
            )
            for left, right in combinations(bases, 2)
        ]
        if len(bases) > 1 and view.step == 0:
            width = len(next(iter(bases.values())))
            chance = Reading.of(0, RUN, f"{self.name}_chance", k / width, "cos²", layer)
            readings.append(chance)
        return readings
