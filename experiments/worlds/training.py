"""Plain training steps on a toy world."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from riprap.toy import Examples, ToyWorld


def train(world: ToyWorld, model: nn.Module, batches: Iterator[Examples], steps: int) -> nn.Module:
    """Train in place by the world's own optimizer; return the model."""
    optimizer = world.optimizer(model)
    for _ in range(steps):
        world.loss(model, next(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model
