"""KL divergences token by token, gathered batch by batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from riprap.diagnosis._base import Estimate, estimate
from riprap.diagnosis.evidence._responses import ResponseBatch


class TokenKL:
    """KL both ways of each token of each response."""

    def __init__(self) -> None:
        self.forward: list[np.ndarray] = []
        self.backward: list[np.ndarray] = []

    def add(self, part: ResponseBatch, reference: Tensor, model: Tensor) -> None:
        """Log-probabilities, shape (n, K, vocabulary)."""
        self.forward += [one.numpy() for one in part.per_response(kl(reference, model))]
        self.backward += [one.numpy() for one in part.per_response(kl(model, reference))]


def kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first ‖ second) in nats over the last dimension of log-probabilities."""
    chances = first.exp()
    return torch.where(chances > 0, chances * (first - second), 0.0).sum(-1)


def mean_kl(values: list[np.ndarray]) -> Estimate:
    """Mean over tokens, then over prompts."""
    return estimate([float(one.mean()) for one in values])


def kl_by_token(values: list[np.ndarray]) -> tuple[Estimate, ...]:
    """Over the prompts whose response is as long."""
    longest = max(map(len, values))
    return tuple(estimate([one[at] for one in values if len(one) > at]) for at in range(longest))
