"""A ground: a trained model, what it must keep, and what it learns next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap import evaluation
from riprap.behaviors import Behavior, logits_of
from riprap.detectors import score
from riprap.selection import IGNORE_INDEX
from riprap.toy import Examples, batches

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
Rows = Examples | Behavior


@dataclass(frozen=True)
class OldTask:
    """What the model already does.

    Attributes:
        probes: rows that are monitored, each with the token that must follow, or a behavior.
        pool: other rows with right answers, which may be replayed.
        test: rows that nobody but the bench reads; the score on them is the result.
        replayed: the pool as a behavior; None: the pool has one token to follow each row.
    """

    name: str
    probes: Rows
    pool: Examples
    test: Rows
    replayed: Behavior | None = None

    def monitored(self, floor: float) -> Behavior:
        """Return the behavior that is monitored, with its floor."""
        own = as_behavior(self.name, self.probes)
        return Behavior(self.name, own.probes, own.margins, floor)

    def buffered(self) -> Behavior:
        """Return the pool without its answers."""
        return as_behavior(self.name, self.pool) if self.replayed is None else self.replayed


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
    methods: ClassVar[tuple[str, ...]] = ()  # methods that run here; none: all of them
    looks: ClassVar[int] = 20  # evaluations along the last stage
    timed: ClassVar[int] = 30  # plain steps that are timed before and after each stage
    autocast: ClassVar[torch.dtype | None] = None  # of `loss`, for what is evaluated before step 1
    replay: ClassVar[tuple[int, int]] = (32, 64)  # old rows in a batch, batches before they repeat

    @abstractmethod
    def start(self, seed: int) -> nn.Module:
        """Return the model that does the old tasks."""

    @abstractmethod
    def stages(self, seed: int) -> Sequence[Stage]:
        """Return the trainings that follow; the last one is measured along the way."""

    def new_score(self, model: nn.Module, stage: Stage) -> float:
        """Return how well the new task is done: the share of right answers."""
        return accuracy(model, stage.test)


def answers(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Return the logits after the last token of each row, shape (n, vocabulary)."""
    logits = logits_of(model(input_ids))
    return logits if logits.ndim == 2 else logits[:, -1]


def loss(model: nn.Module, batch: Examples) -> Tensor:
    """Return the mean cross-entropy of the answers, in nats.

    Rows with a label for each token (a text) are learned under bfloat16 autocast.
    """
    if batch.targets.ndim == 1:
        return functional.cross_entropy(answers(model, batch.input_ids), batch.targets)
    with torch.autocast(batch.input_ids.device.type, torch.bfloat16):
        logits = logits_of(model(batch.input_ids))
    counted = batch.targets[:, 1:] != IGNORE_INDEX
    return functional.cross_entropy(logits[:, :-1][counted].float(), batch.targets[:, 1:][counted])


def as_behavior(name: str, rows: Rows) -> Behavior:
    """Return rows with one token to follow each as a behavior; a behavior is returned unchanged."""
    if isinstance(rows, Behavior):
        return rows
    return Behavior.next_token(name, rows.input_ids, rows.targets)


def accuracy(model: nn.Module, rows: Rows) -> float:
    """Return the share of rows that are answered right, or of probes that pass."""
    if isinstance(rows, Behavior):
        return score(evaluation.evaluate(rows, model).margins)
    return _accuracy(model, rows)


@torch.no_grad()
def _accuracy(model: nn.Module, rows: Examples) -> float:
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
