"""A ground: a trained model, what it must keep, and what it learns next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap.behaviors import logits_of
from riprap.toy import Examples, batches

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class OldTask:
    """What the model already does.

    Attributes:
        probes: rows that are monitored.
        pool: other rows, which may be replayed.
        test: rows that nobody but the bench reads; the score on them is the result.
    """

    name: str
    probes: Examples
    pool: Examples
    test: Examples


@dataclass(frozen=True)
class Stage:
    """Training on one new task.

    Attributes:
        old: what must be kept.
        task: rows that are learned; `test`: rows that tell how well.
        steps: number of steps of `batch` rows.
        optimizer: makes the optimizer of the stage.
    """

    old: tuple[OldTask, ...]
    task: Examples
    test: Examples
    steps: int
    batch: int
    optimizer: MakeOptimizer


class Ground(ABC):
    """A reproducible setting: `start` makes the model, `stages` what it then learns in turn."""

    name: ClassVar[str]
    about: ClassVar[str]  # one line for the page
    layer: ClassVar[str | None] = None  # module that is read as features; None: the middle one
    causal: ClassVar[bool] = True  # the model predicts each token of its input

    @abstractmethod
    def start(self, seed: int) -> nn.Module:
        """Return the model that does the old tasks."""

    @abstractmethod
    def stages(self, seed: int) -> Sequence[Stage]:
        """Return the trainings that follow; the last one is measured along the way."""


def answers(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Return the logits after the last token of each row, shape (n, vocabulary)."""
    logits = logits_of(model(input_ids))
    return logits if logits.ndim == 2 else logits[:, -1]


def loss(model: nn.Module, batch: Examples) -> Tensor:
    """Return the mean cross-entropy of the answers, in nats."""
    return functional.cross_entropy(answers(model, batch.input_ids), batch.targets)


@torch.no_grad()
def accuracy(model: nn.Module, rows: Examples) -> float:
    """Return the share of rows that are answered right."""
    training = model.training
    model.eval()
    right = answers(model, rows.input_ids).argmax(-1) == rows.targets
    model.train(training)
    return float(right.float().mean())


def shuffled(rows: Examples, *sizes: int, seed: int) -> list[Examples]:
    """Return disjoint random parts of the given sizes, and the remaining rows as the last."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    parts = torch.split(order, [*sizes, len(rows) - sum(sizes)])
    return [rows[part] for part in parts]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: list[Examples],
    steps: int,
    batch: int,
    seed: int,
) -> None:
    """Train on batches with about as many rows of each part."""
    sizes = [batch // len(parts) + (at < batch % len(parts)) for at in range(len(parts))]
    data = batches(parts, sizes, seed)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, next(data)).backward()
        optimizer.step()
    optimizer.zero_grad()
