"""CKA: similarity of a behavior's activations to those at the start."""

from __future__ import annotations

from torch import Tensor

from riprap.behaviors import Behavior
from riprap.signals._base import FeatureSignal, ProbeView, not_run
from riprap.types import Reading, ReadingStatus

MIN_ROWS = 4  # rows; the unbiased estimator divides by n − 3


def unbiased_hsic(left: Tensor, right: Tensor) -> Tensor:
    """Compute HSIC₁ of two Gramians, the unbiased estimator of Song et al. (2012); a scalar.

    Args:
        left, right: shape (n, n), n ≥ 4.
    """
    n = len(left)
    a, b = (gramian - gramian.diagonal().diag() for gramian in (left, right))
    across = (a * b).sum()
    sums = a.sum() * b.sum() / ((n - 1) * (n - 2))
    rows = a.sum(0) @ b.sum(0) * 2 / (n - 2)
    return (across + sums - rows) / (n * (n - 3))


def debiased_cka(now: Tensor, then: Tensor) -> float:
    """Compute linear CKA with unbiased HSIC (1905.00414; Nguyen et al., 2010.15327).

    1 where the activations are equal up to rotation, shift and one scale; about 0, sometimes below,
    where they are unrelated. NaN where all rows of a set are equal.

    Args:
        now, then: shapes (n, d), (n, e), rows in the same order, n ≥ 4.
    """
    grams = []
    for rows in (now, then):
        # Centered first: HSIC ignores a shift, but floating-point rounding does not.
        centered = rows.double() - rows.double().mean(0)
        grams.append(centered @ centered.T)
    a, b = grams
    scale = unbiased_hsic(a, a) * unbiased_hsic(b, b)
    return float(unbiased_hsic(a, b) / scale.sqrt()) if scale > 0 else float("nan")


class CKA(FeatureSignal):
    """Debiased linear CKA between a behavior's activations now and at θ₀.

    Stores the activations of the start, (rows, d) per behavior. `INSUFFICIENT` with fewer than 4
    rows.
    """

    name = "cka"
    state_attrs = ("start_activations",)

    def __init__(self) -> None:
        self.start_activations: dict[str, Tensor] = {}

    def start(self, view: ProbeView) -> None:
        """Store the activations of the start."""
        for behavior in view.behaviors:
            activations = self.activations(view, behavior.name)
            if activations is not None:
                self.start_activations[behavior.name] = activations

    def read(self, view: ProbeView, behavior: Behavior, activations: Tensor) -> list[Reading]:
        """Return one reading, about 0 to 1."""
        step, name, layer = view.step, behavior.name, view.layer or ""
        then = self.start_activations.get(name)
        if then is None or then.shape != activations.shape:
            return [not_run(step, name, self.name, "the probes changed shape")]
        if len(activations) < MIN_ROWS:
            reason = f"{len(activations)} rows; debiased CKA needs {MIN_ROWS}"
            state = ReadingStatus.INSUFFICIENT
            missing = Reading(step, name, self.name, state=state, layer=layer, detail=reason)
            return [missing] * (step == 0)
        value = debiased_cka(activations, then)
        return [Reading.of(step, name, self.name, value, "cka", layer)]
