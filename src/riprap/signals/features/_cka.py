"""CKA: do a behaviour's activations still relate to each other as they did at the start?"""

from __future__ import annotations

from torch import Tensor

from riprap.behaviors import Behavior
from riprap.signals._base import FeatureSignal, ProbeView, not_run
from riprap.types import Reading, ReadingStatus

MIN_ROWS = 4  # rows; the unbiased estimator divides by n − 3


def unbiased_hsic(left: Tensor, right: Tensor) -> Tensor:
    """HSIC₁ of two Gramians, the unbiased estimator of Song et al. (2012); a scalar.

    Args:
        left, right: shape (n, n), n ≥ 4.
    """
    n = len(left)
    one, two = (gramian - gramian.diagonal().diag() for gramian in (left, right))
    across = (one * two).sum()
    sums = one.sum() * two.sum() / ((n - 1) * (n - 2))
    rows = one.sum(0) @ two.sum(0) * 2 / (n - 2)
    return (across + sums - rows) / (n * (n - 3))


def debiased_cka(now: Tensor, then: Tensor) -> float:
    """Linear CKA with unbiased HSIC (Kornblith et al., 1905.00414; Nguyen et al., 2010.15327).

    1 where the activations are the same up to rotation, shift and one scale; around 0, and so
    also below it, where they have nothing in common. NaN where all rows of a set are alike.

    Args:
        now, then: shapes (n, d), (n, e), rows in the same order, n ≥ 4.
    """
    grams = []
    for rows in (now, then):
        # Centred first: HSIC is blind to a shift, float arithmetic is not.
        centred = rows.double() - rows.double().mean(0)
        grams.append(centred @ centred.T)
    one, two = grams
    scale = unbiased_hsic(one, one) * unbiased_hsic(two, two)
    return float(unbiased_hsic(one, two) / scale.sqrt()) if scale > 0 else float("nan")


class CKA(FeatureSignal):
    """Debiased linear CKA between a behaviour's activations now and at θ₀.

    Keeps the start's activations, (rows, d) a behaviour. `INSUFFICIENT` with fewer than 4 rows.
    """

    name = "cka"

    def __init__(self) -> None:
        self.start_activations: dict[str, Tensor] = {}

    def start(self, view: ProbeView) -> None:
        """Keep the activations of the start."""
        for behavior in view.behaviors:
            activations = self.activations(view, behavior.name)
            if activations is not None:
                self.start_activations[behavior.name] = activations

    def read(self, view: ProbeView, behavior: Behavior, activations: Tensor) -> list[Reading]:
        """One reading, about 0 to 1."""
        step, name, layer = view.step, behavior.name, view.layer or ""
        then = self.start_activations.get(name)
        if then is None or then.shape != activations.shape:
            return [not_run(step, name, self.name, "the probes changed shape")]
        if len(activations) < MIN_ROWS:
            why = f"{len(activations)} rows; debiased CKA needs {MIN_ROWS}"
            state = ReadingStatus.INSUFFICIENT
            missing = Reading(step, name, self.name, state=state, layer=layer, detail=why)
            return [missing] * (step == 0)
        value = debiased_cka(activations, then)
        return [Reading.of(step, name, self.name, value, "cka", layer)]
