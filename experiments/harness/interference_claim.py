"""Direct test of the core claim: ⟨h_b, Δθ⟩ predicts the change of the mean margin."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from riprap import evaluation
from riprap.behaviors import Behavior
from riprap.linalg import Vector, VectorStack, clone, subtract


class InterferenceComparison:
    """Compares predicted with realized change, step by step; training is not affected.

    Call `before_step` and `after_step` around each optimizer step; after `steps` of them both do
    nothing.

    Args:
        ages: ages, in steps, of the stale h_b that are compared as well.
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
        self._past: deque[VectorStack] = deque(maxlen=max(ages) + 1)
        self._before: Vector = []
        self._means: list[dict[str, float]] = []
        self._rows: list[dict[str, list[float]]] = []

    @property
    def is_active(self) -> bool:
        """True while there are steps to compare."""
        return len(self._rows) < self.steps

    def before_step(self) -> None:
        """Compute protected gradients at the present parameters."""
        if not self.is_active:
            return
        results = self._evaluate(self.parameters)
        gradients = {name: result.gradient for name, result in results.items() if result.gradient}
        self._past.append(VectorStack(gradients))
        self._before = clone(self.parameters)

    def after_step(self) -> None:
        """Predict the effect of the step from fresh and from stale gradients."""
        if not self.is_active:
            return
        update = subtract(self.parameters, self._before)
        past = [
            self._past[-1 - age].inner_products(update) if age < len(self._past) else {}
            for age in (0, *self.ages)
        ]
        names = past[0]
        self._rows.append({n: [old.get(n, float("nan")) for old in past] for n in names})
        if not self.is_active:  # the realized change of the last step needs the margins after it
            self._evaluate()
            self._past.clear()

    def _evaluate(
        self, parameters: Sequence[Tensor] | None = None
    ) -> dict[str, evaluation.ProbeResult]:
        results: dict[str, evaluation.ProbeResult] = {}
        for group in evaluation.group_by_forward_pass(self.behaviors, self.model):
            results |= evaluation.evaluate_batch(group, self.model, parameters)
        self._means.append({name: float(result.margins.mean()) for name, result in results.items()})
        return results

    def arrays(self) -> dict[str, np.ndarray]:
        """Return by `kind/behavior`: `predicted`, `realised` (steps,) and `stale` (ages, steps)."""
        arrays = {}
        for name in self._rows[0] if self._rows else []:
            predictions = np.array([row[name] for row in self._rows]).T
            means = np.array([mean[name] for mean in self._means])
            arrays[f"predicted/{name}"] = predictions[0]
            arrays[f"stale/{name}"] = predictions[1:]
            arrays[f"realised/{name}"] = np.diff(means)[: predictions.shape[1]]
        return arrays


def agreement(predicted: np.ndarray, realized: np.ndarray) -> dict[str, float]:
    """Return correlation, slope of realized on predicted (through 0), and steps compared."""
    known = np.isfinite(predicted) & np.isfinite(realized)
    x, y = predicted[known], realized[known]
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return {"correlation": float("nan"), "slope": float("nan"), "n": float(len(x))}
    return {
        "correlation": float(np.corrcoef(x, y)[0, 1]),
        "slope": float((x @ y) / (x @ x)),
        "n": float(len(x)),
    }
