"""Permuted digits: handwritten digits whose pixels are in another order in each task.

Needs scikit-learn, which brings the data.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from riprap import Behavior

Rows = tuple[Tensor, Tensor]
TRAINED = 1400  # of 1797 rows; the others test


def tasks(count: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Return training and test rows of each task; the first has the pixels in order."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    inputs = torch.tensor(data.data / 16.0, dtype=torch.float32)[order]
    targets = torch.tensor(data.target)[order]
    made = []
    for task in range(count):
        generator = torch.Generator().manual_seed(1000 * seed + task)
        pixels = torch.arange(64) if task == 0 else torch.randperm(64, generator=generator)
        rows = inputs[:, pixels]
        training, test = slice(None, TRAINED), slice(TRAINED, None)
        made.append(((rows[training], targets[training]), (rows[test], targets[test])))
    return made


def classifier(seed: int) -> nn.Module:
    """Make a network with two hidden layers of 100."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def loss(model: nn.Module, rows: Rows) -> Tensor:
    """Cross-entropy, in nats."""
    return functional.cross_entropy(model(rows[0]), rows[1])


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, rows: Rows, steps: int, seed: int
) -> None:
    """Train on random batches of 32 rows."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(0, len(rows[1]), (32,), generator=generator)
        optimizer.zero_grad()
        loss(model, (rows[0][batch], rows[1][batch])).backward()
        optimizer.step()


def behavior(name: str, rows: Rows) -> Behavior:
    """Make a behavior of rows that the model classifies."""

    def margins(model: nn.Module, probes: Rows) -> Tensor:
        logits, targets = model(probes[0]), probes[1][:, None]
        others = logits.scatter(1, targets, float("-inf")).amax(1)
        return logits.gather(1, targets)[:, 0] - others

    def losses(model: nn.Module, probes: Rows) -> Tensor:
        return functional.cross_entropy(model(probes[0]), probes[1], reduction="none")

    return Behavior(name, rows, margins=margins, losses=losses)


@torch.no_grad()
def accuracy(model: nn.Module, rows: Rows) -> float:
    """Share of rows that are classified right."""
    return float((model(rows[0]).argmax(1) == rows[1]).float().mean())
