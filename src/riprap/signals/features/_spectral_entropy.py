"""Spectral entropy: spread of a behavior's activations over directions."""

from __future__ import annotations

import torch
from torch import Tensor

from riprap.behaviors import Behavior
from riprap.signals._base import FeatureSignal, ProbeView
from riprap.types import Reading


def spectral_entropy(activations: Tensor) -> Tensor:
    """Compute −Σ pᵢ log pᵢ in nats, pᵢ the share of the i-th squared singular value; a scalar.

    Args:
        activations: shape (n, d); centered here, so that the mean does not dominate.
    """
    energies = torch.linalg.svdvals(activations - activations.mean(0)).square()
    shares = energies / energies.sum()
    return -torch.special.xlogy(shares, shares).sum()


class SpectralEntropy(FeatureSignal):
    """Entropy of the activations' spectrum, a baseline. One SVD of (rows, d) per evaluation."""

    name = "spectral_entropy"

    def read(self, view: ProbeView, behavior: Behavior, activations: Tensor) -> list[Reading]:
        """Return the entropy in nats, between 0 and the log of the rank."""
        value = float(spectral_entropy(activations))
        return [Reading.of(view.step, behavior.name, self.name, value, "nats", view.layer or "")]
