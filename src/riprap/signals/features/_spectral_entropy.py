"""Spectral entropy: over how many directions a behaviour's activations are spread."""

from __future__ import annotations

import torch
from torch import Tensor

from riprap.behaviors import Behavior
from riprap.signals._base import FeatureSignal, ProbeView
from riprap.types import Reading


def spectral_entropy(activations: Tensor) -> Tensor:
    """−Σ pᵢ log pᵢ in nats, pᵢ the share of the i-th squared singular value; a scalar.

    Args:
        activations: shape (n, d); centred here, so that the mean does not outweigh all else.
    """
    energies = torch.linalg.svdvals(activations - activations.mean(0)).square()
    shares = energies / energies.sum()
    return -torch.special.xlogy(shares, shares).sum()


class SpectralEntropy(FeatureSignal):
    """Entropy of the activations' spectrum; a baseline. One SVD of (rows, d) a visit."""

    name = "spectral_entropy"

    def read(self, view: ProbeView, behavior: Behavior, activations: Tensor) -> list[Reading]:
        """In nats, between 0 and log of the rank."""
        value = float(spectral_entropy(activations))
        return [Reading.of(view.step, behavior.name, self.name, value, "nats", view.layer or "")]
