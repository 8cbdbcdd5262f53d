"""Signals: each reads features, gradients or outputs, yields readings, and changes nothing.

- `default`, `per_step`, `everything`: lists of signals for `Monitor(signals=...)`.
- Gradients: `Interference`, `MarginCosine`, `LossCosine`, `FisherCosine`, `TopKCosine`, `Norms`,
  `SteepAlignment`, `LayerInterference`.
- Features: `Projection`, `Energy`, `Drift`, `Overlap`, `SpectralEntropy`, `CKA`, `LinearProbe`,
  `SAEFeatures`. Outputs: `KLToStart`.
- `Signal`, `StepView`, `ProbeView`: the base class and what its methods read.
"""

from riprap.signals._base import ProbeView, Signal, StepView
from riprap.signals.features import (
    CKA,
    Drift,
    Energy,
    LinearProbe,
    Overlap,
    Projection,
    SAEFeatures,
    SpectralEntropy,
)
from riprap.signals.gradients import (
    FisherCosine,
    Interference,
    LayerInterference,
    LossCosine,
    MarginCosine,
    Norms,
    SteepAlignment,
    TopKCosine,
)
from riprap.signals.outputs import KLToStart

__all__ = [
    "CKA",
    "Drift",
    "Energy",
    "FisherCosine",
    "Interference",
    "KLToStart",
    "LayerInterference",
    "LinearProbe",
    "LossCosine",
    "MarginCosine",
    "Norms",
    "Overlap",
    "ProbeView",
    "Projection",
    "SAEFeatures",
    "Signal",
    "SpectralEntropy",
    "SteepAlignment",
    "StepView",
    "TopKCosine",
    "default",
    "everything",
    "per_step",
]


def default() -> list[Signal]:
    """Return the signals that need no pass of their own, and no work at each step."""
    return [Interference(), *_features(), KLToStart()]


def per_step() -> list[Signal]:
    """Return `default()` with interference, cosines and norms at every step.

    Costs products with the gradient and the update at each step, and at the start a pass for the
    depth ‖g_b‖.
    """
    gradients: list[Signal] = [Interference(every_step=True), MarginCosine(), Norms()]
    return [*gradients, *_features(), KLToStart()]


def everything() -> list[Signal]:
    """Return all signals without required arguments; loss gradients cost a second pass."""
    features: list[Signal] = [SpectralEntropy(), CKA(), LinearProbe(), SAEFeatures()]
    gradients = [LossCosine(), FisherCosine(), SteepAlignment(), LayerInterference()]
    return [*per_step(), *gradients, *features]


def _features() -> list[Signal]:
    return [Projection(), Energy(), Drift(), Overlap()]
