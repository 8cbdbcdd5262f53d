"""Interference by layer: where in the model an update acts on a behaviour's mean margin."""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor

from riprap.evaluation import layer_names
from riprap.linalg import inner_products
from riprap.signals._base import Signal, StepView, ProbeView, not_run_without_gradient
from riprap.types import Reading


class LayerInterference(Signal):
    """The parts of Σ ⟨h_b, Δθ⟩ over the steps since the last visit, layer by layer (ours).

    One reading a layer and behaviour at each visit, with `Reading.layer` the name of the stack's
    element ("model.layers.3") or of the module outside of it ("lm_head"); the unit is that of the
    margin. Over the layers they sum to what `interference` summed to over those steps. Each step
    costs one product a parameter and behaviour, where `interference` alone needs a few in all.
    """

    name = "interference_layer"

    def __init__(self) -> None:
        self.layers: dict[str, list[int]] = {}
        self.sums: dict[str, dict[str, float]] = {}

    def start(self, view: ProbeView) -> None:
        """Find out which parameters make up which layer."""
        parts: dict[str, list[int]] = defaultdict(list)
        for index, layer in enumerate(layer_names(view.model, view.parameters)):
            parts[layer].append(index)
        self.layers = dict(parts)

    def on_update(self, view: StepView) -> list[Reading]:
        """Add the step to the sums; nothing is read yet."""
        held = view.protected_gradients.margin_gradients
        if view.update is None or not held.names:
            return []
        vectors = [held.vector(name, view.update) for name in held.names]
        for layer, indices in self.layers.items():
            own = [[vector[i] for i in indices] for vector in vectors]
            products = inner_products(_select_parts(view.update, indices), own).tolist()
            for name, value in zip(held.names, products, strict=True):
                sums = self.sums.setdefault(name, dict.fromkeys(self.layers, 0.0))
                sums[layer] += value
        return []

    def on_probes(self, view: ProbeView) -> list[Reading]:
        """What each layer was predicted to do since the last visit."""
        readings = [
            Reading.of(view.step, name, self.name, value, "margin", layer)
            for name, sums in self.sums.items()
            for layer, value in sums.items()
        ]
        self.sums = {}
        return readings + not_run_without_gradient(view, self.name)


def _select_parts(vector: list[Tensor], indices: list[int]) -> list[Tensor]:
    return [vector[i] for i in indices]
