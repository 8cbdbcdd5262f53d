"""Signals: each reads features, gradients or outputs, yields readings, and changes nothing."""

from riprap.signals._base import ProtectedGradients, Signal, StepView, ProbeView
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
    "ProtectedGradients",
    "Interference",
    "KLToStart",
    "LayerInterference",
    "LinearProbe",
    "LossCosine",
    "MarginCosine",
    "Norms",
    "Overlap",
    "Projection",
    "SAEFeatures",
    "Signal",
    "SpectralEntropy",
    "SteepAlignment",
    "StepView",
    "TopKCosine",
    "ProbeView",
    "default",
    "everything",
]


def default() -> list[Signal]:
    """Those that need no pass of their own, but for the depth ‖g_b‖ at the start."""
    features: list[Signal] = [Projection(), Energy(), Drift(), Overlap()]
    return [Interference(), MarginCosine(), Norms(), *features, KLToStart()]


def everything() -> list[Signal]:
    """All that need nothing from the user; loss gradients cost a second pass at each visit."""
    features: list[Signal] = [SpectralEntropy(), CKA(), LinearProbe(), SAEFeatures()]
    gradients = [LossCosine(), FisherCosine(), SteepAlignment(), LayerInterference()]
    return [*default(), *gradients, *features]
