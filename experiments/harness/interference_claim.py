"""The core claim, tested directly: does ⟨h_b, Δθ⟩ say how the mean margin will change?"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.linalg import Stack, Vector, clone, subtract


class Claim:
    """Compares predicted with realised change, step by step, without a trace on training.

    Call `before_step` and `after_step` around each optimizer step; after `steps` of them both do
    nothing.

    Args:
        ages: how stale, in steps, h_b is made on purpose.
    """

    def __init__(
        self,
        model: nn.Module,
        behaviors: Sequence[Behavior],
        parameters: Sequence[Tensor],
        steps: int,
        ages: Sequence[int],
    ) -> None:
        self.model, self.behaviors, self.parameters = model, behaviors, parameters
        self.steps, self.ages = steps, ages
        self._past: deque[Stack] = deque(maxlen=max(ages) + 1)
        self._before: Vector = []
        self._means: list[dict[str, float]] = []
        self._rows: list[dict[str, list[float]]] = []

    @property
    def going_on(self) -> bool:
        """Whether there are steps left to compare."""
        return len(self._rows) < self.steps

    def before_step(self) -> None:
        """Take fresh protected gradients at the parameters as they are."""
        if not self.going_on:
            return
        looks = self._look(self.parameters)
        gradients = {name: look.gradient for name, look in looks.items() if look.gradient}
        self._past.append(Stack(gradients))
        self._means.append({name: float(look.margins.mean()) for name, look in looks.items()})
        self._before = clone(self.parameters)

    def after_step(self) -> None:
        """Predict the step's effect from fresh and from aged gradients."""
        if not self.going_on:
            return
        update = subtract(self.parameters, self._before)
        past = [
            self._past[-1 - age].dots(update) if age < len(self._past) else {}
            for age in (0, *self.ages)
        ]
        names = past[0]
        self._rows.append({n: [old.get(n, float("nan")) for old in past] for n in names})
        if not self.going_on:
            self._finish()

    def _finish(self) -> None:
        """The last realised change needs the margins after the last step."""
        looks = self._look()
        self._means.append({name: float(look.margins.mean()) for name, look in looks.items()})
        self._past.clear()

    def _look(self, parameters: Sequence[Tensor] | None = None) -> dict[str, probing.Look]:
        looks: dict[str, probing.Look] = {}
        for group in probing.shared_passes(self.behaviors, self.model):
            looks |= probing.look_together(group, self.model, parameters)
        return looks

    def arrays(self) -> dict[str, np.ndarray]:
        """By `kind/behaviour`: `predicted` and `realised` (steps,), `stale` (ages, steps)."""
        arrays = {}
        for name in self._rows[0] if self._rows else []:
            predictions = np.array([row[name] for row in self._rows]).T
            means = np.array([mean[name] for mean in self._means])
            arrays[f"predicted/{name}"] = predictions[0]
            arrays[f"stale/{name}"] = predictions[1:]
            arrays[f"realised/{name}"] = np.diff(means)[: predictions.shape[1]]
        return arrays


def agreement(predicted: np.ndarray, realised: np.ndarray) -> dict[str, float]:
    """Correlation, slope of realised on predicted (through 0), and number of steps compared."""
    known = np.isfinite(predicted) & np.isfinite(realised)
    x, y = predicted[known], realised[known]
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return {"correlation": float("nan"), "slope": float("nan"), "n": float(len(x))}
    return {
        "correlation": float(np.corrcoef(x, y)[0, 1]),
        "slope": float((x @ y) / (x @ x)),
        "n": float(len(x)),
    }
