"""Signals of the activations at one layer; see `riprap.signals`."""

# ruff: noqa: F401
from riprap.signals.features._cka import CKA
from riprap.signals.features._dictionary import TopKSAE, jaccard, unexplained_variance
from riprap.signals.features._directions import principal_directions
from riprap.signals.features._drift import Drift
from riprap.signals.features._energy import Energy
from riprap.signals.features._linear_probe import LinearProbe, balanced_ridge
from riprap.signals.features._overlap import Overlap
from riprap.signals.features._projection import Projection
from riprap.signals.features._sae import SAEFeatures
from riprap.signals.features._spectral_entropy import SpectralEntropy
