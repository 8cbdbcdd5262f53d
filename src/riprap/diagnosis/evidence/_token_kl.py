"""KL divergences token by token, collected batch by batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from riprap.diagnosis._base import Estimate, estimate
from riprap.diagnosis.evidence._responses import ResponseBatch


class TokenKL:
    """KL in nats in both directions for each token, one array per response."""

    def __init__(self) -> None:
        self.forward: list[np.ndarray] = []  # KL(reference ‖ model)
        self.backward: list[np.ndarray] = []  # KL(model ‖ reference)

    def add(self, batch: ResponseBatch, reference: Tensor, model: Tensor) -> None:
        """Add a batch from log-probabilities, shape (n, K, vocabulary)."""
        self.forward += [row.numpy() for row in batch.per_response(kl(reference, model))]
        self.backward += [row.numpy() for row in batch.per_response(kl(model, reference))]


def kl(first: Tensor, second: Tensor) -> Tensor:
    """Compute KL(first ‖ second) in nats over the last dimension of log-probabilities."""
    probabilities = first.exp()
    return torch.where(probabilities > 0, probabilities * (first - second), 0.0).sum(-1)


def mean_kl(values: list[np.ndarray]) -> Estimate:
    """Compute the mean over tokens, then over responses."""
    return estimate([float(row.mean()) for row in values])


def kl_by_token(values: list[np.ndarray]) -> tuple[Estimate, ...]:
    """Compute the mean at each token, over the responses that are long enough."""
    longest = max(map(len, values))
    return tuple(estimate([row[at] for row in values if len(row) > at]) for at in range(longest))
