"""Interference by layer: the parts of the interference that come from each layer."""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor

from riprap.evaluation import layer_names
from riprap.linalg import inner_products
from riprap.signals._base import ProbeView, Signal, StepView, not_run_without_gradient
from riprap.types import Reading


class LayerInterference(Signal):
    """Parts of Σ ⟨h_b, Δθ⟩ over the steps since the last reading, by layer (ours).

    One reading per layer and behavior at each probe evaluation. `Reading.layer` is the name of an
    element of the layer stack ("model.layers.3") or of a module outside of it ("lm_head"); the unit
    is that of the margin. The readings of all layers add up to the sum of `interference` over these
    steps. Costs one product per parameter and behavior where `interference` needs a few in all.
    """

    name = "interference_layer"
    per_parameter = True
    state_attrs = ("layers", "sums")

    def __init__(self) -> None:
        self.layers: dict[str, list[int]] = {}
        self.sums: dict[str, dict[str, float]] = {}

    def start(self, view: ProbeView) -> None:
        """Group the parameters by layer."""
        parts: dict[str, list[int]] = defaultdict(list)
        for index, layer in enumerate(layer_names(view.model, view.parameters)):
            parts[layer].append(index)
        self.layers = dict(parts)

    def on_update(self, view: StepView) -> list[Reading]:
        """Add the update to the sums; return no readings."""
        stack = view.protected_gradients.margin_gradients
        if view.update is None or not stack.names:
            return []
        update = list(view.update)
        vectors = [stack.vector(name, update) for name in stack.names]
        for layer, indices in self.layers.items():
            own = [[vector[i] for i in indices] for vector in vectors]
            products = inner_products(_select_parts(update, indices), own).tolist()
            for name, value in zip(stack.names, products, strict=True):
                sums = self.sums.setdefault(name, dict.fromkeys(self.layers, 0.0))
                sums[layer] += value
        return []

    def on_probe_evaluation(self, view: ProbeView) -> list[Reading]:
        """Return the sums since the last probe evaluation, and reset them."""
        readings = [
            Reading.of(view.step, name, self.name, value, "margin", layer)
            for name, sums in self.sums.items()
            for layer, value in sums.items()
        ]
        self.sums = {}
        return readings + not_run_without_gradient(view, self.name)


def _select_parts(vector: list[Tensor], indices: list[int]) -> list[Tensor]:
    return [vector[i] for i in indices]
