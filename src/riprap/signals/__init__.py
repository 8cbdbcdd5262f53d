"""Signals: each reads features, gradients or outputs, yields readings, and changes nothing."""

from riprap.signals.base import Held, Signal, StepView, VisitView
from riprap.signals.features.cka import CKA
from riprap.signals.features.drift import Drift
from riprap.signals.features.energy import Energy
from riprap.signals.features.linear_probe import LinearProbe
from riprap.signals.features.overlap import Overlap
from riprap.signals.features.projection import Projection
from riprap.signals.features.sae import SAEFeatures
from riprap.signals.features.spectral_entropy import SpectralEntropy
from riprap.signals.gradients.cosine import LossCosine, MarginCosine
from riprap.signals.gradients.fisher import FisherCosine
from riprap.signals.gradients.interference import Interference
from riprap.signals.gradients.layers import LayerInterference
from riprap.signals.gradients.norms import Norms
from riprap.signals.gradients.steep import SteepAlignment
from riprap.signals.gradients.top_k import TopKCosine
from riprap.signals.outputs.kl import KLToStart

__all__ = [
    "CKA",
    "Drift",
    "Energy",
    "FisherCosine",
    "Held",
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
    "VisitView",
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
