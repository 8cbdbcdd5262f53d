"""Lessons that interfere with what a small net has learned, and the loop that teaches them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap import Behavior


def task(count: int, rows: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Batches of another lesson, which interferes with what was learned."""
    made = torch.Generator().manual_seed(21)
    return [
        (torch.randn(rows, 8, generator=made), torch.randint(0, 4, (rows,), generator=made))
        for _ in range(count)
    ]


def train(model: nn.Module, optimizer: Any, batches: list[tuple[Tensor, Tensor]]) -> None:
    for inputs, labels in batches:
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def mean_margin_gradient(model: nn.Module, behavior: Behavior) -> np.ndarray:
    parts = torch.autograd.grad(
        behavior.margins(model, behavior.probes).mean(), list(model.parameters())
    )
    return np.concatenate([part.double().numpy().ravel() for part in parts])


def flat(model: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().double().numpy().ravel() for p in model.parameters()])
