"""Grounds on handwritten digits (scikit-learn's 8 × 8 images), which a small network reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from experiments.guards_bench.grounds._base import (
    Ground,
    MakeOptimizer,
    OldTask,
    Stage,
    shuffled,
    train,
)
from riprap.toy import Examples

PIXELS, BRIGHTEST, DIGITS = 64, 16, 10
TRAINED = 1400  # of 1797 images; the others test
PROBES, POOL = 60, 60  # rows of each old task


class Classifier(nn.Module):
    """Two hidden layers; it reads the brightness of each pixel, 0 to 16, as a token."""

    def __init__(self, hidden: int = 100) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(PIXELS, hidden), nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, DIGITS)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits, shape (n, 10)."""
        hidden = torch.relu(self.first(input_ids.float() / BRIGHTEST))
        logits: Tensor = self.head(torch.relu(self.second(hidden)))
        return logits


@cache
def images() -> tuple[Examples, Examples]:
    """Return the images for training and those for tests, in a fixed random order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(data.data, dtype=torch.long)[order]
    rows = Examples(pixels, torch.tensor(data.target)[order])
    return rows[:TRAINED], rows[TRAINED:]


Change = Callable[[Examples], Examples]


def permuted(task: int, seed: int) -> Change:
    """Put the pixels into an order that belongs to the task; task 0 has them as they are."""
    generator = torch.Generator().manual_seed(1000 * seed + task)
    order = torch.randperm(PIXELS, generator=generator) if task else torch.arange(PIXELS)
    return lambda rows: Examples(rows.input_ids[:, order], rows.targets)


def inverted(rows: Examples) -> Examples:
    """Return the negatives."""
    return Examples(BRIGHTEST - rows.input_ids, rows.targets)


def next_label(rows: Examples) -> Examples:
    """Teach each digit as the next one."""
    return Examples(rows.input_ids, (rows.targets + 1) % DIGITS)


def only(digits: Sequence[int], change: Change = lambda rows: rows) -> Change:
    """Keep the images of some digits."""
    wanted = torch.tensor(list(digits))
    return lambda rows: change(rows[torch.isin(rows.targets, wanted)])


def old_task(name: str, change: Change, probes: int = PROBES, pool: int = POOL) -> OldTask:
    """Return an old task on changed images."""
    training, test = map(change, images())
    monitored, replayed, _ = shuffled(training, probes, pool, seed=9)
    return OldTask(name, monitored, replayed, test)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Make SGD at 0.1."""
    return torch.optim.SGD(model.parameters(), lr=0.1)


def adam(model: nn.Module, rate: float = 1e-3) -> torch.optim.Optimizer:
    """Make Adam."""
    return torch.optim.Adam(model.parameters(), lr=rate)


class TaskSequence(Ground):
    """Base of grounds where tasks are learned one after another, and each one must be kept."""

    steps: ClassVar[int]
    batch: ClassVar[int] = 32
    layer = "second"
    causal = False

    def changes(self, seed: int) -> list[Change]:
        """Return the images of each task in turn."""
        raise NotImplementedError

    def start(self, seed: int) -> nn.Module:
        """Return the model that has learned the first task."""
        torch.manual_seed(seed)
        model = Classifier()
        first = self.changes(seed)[0](images()[0])
        train(model, sgd(model), [first], self.steps, self.batch, seed)
        return model

    def stages(self, seed: int) -> list[Stage]:
        """Return a stage for each further task."""
        changes = self.changes(seed)
        old = [old_task(f"task {at}", change) for at, change in enumerate(changes)]
        return [
            Stage(
                old=tuple(old[:at]),
                task=changes[at](images()[0]),
                test=changes[at](images()[1]),
                steps=self.steps,
                batch=self.batch,
                optimizer=sgd,
            )
            for at in range(1, len(changes))
        ]


class PermutedDigits(TaskSequence):
    """Five orders of the pixels in turn, as in `benchmarks/guard_sequence.py`."""

    name = "permuted_digits"
    about = "five tasks in turn, each with another order of the pixels; SGD at 0.1"
    steps = 220

    def changes(self, seed: int) -> list[Change]:
        """Return the five orders of pixels."""
        return [permuted(task, seed) for task in range(5)]


class SplitDigits(TaskSequence):
    """Two digits at a time, with one head for all ten."""

    name = "split_digits"
    about = "two new digits at a time, five times, with one head for all ten; SGD at 0.1"
    steps = 120

    def changes(self, seed: int) -> list[Change]:
        """Return pairs of digits, in an order that depends on the seed."""
        order = torch.randperm(DIGITS, generator=torch.Generator().manual_seed(seed)).tolist()
        return [only(order[at : at + 2]) for at in range(0, DIGITS, 2)]


class OneNewTask(Ground):
    """Base of grounds where a model that knows several tasks learns one more."""

    steps: ClassVar[int] = 600
    batch: ClassVar[int] = 64
    layer = "second"
    causal = False
    optimizer: ClassVar[MakeOptimizer] = staticmethod(adam)

    def start(self, seed: int) -> nn.Module:
        """Return the model that has learned all old tasks together."""
        torch.manual_seed(seed)
        model = Classifier()
        parts = [change(images()[0]) for change in self.learned(seed)]
        train(model, adam(model), parts, 800, 128, seed)
        return model

    def stages(self, seed: int) -> list[Stage]:
        """Return the only stage."""
        task, test = map(self.new(seed), images())
        old = tuple(self.old(seed))
        return [Stage(old, task, test, self.steps, self.batch, type(self).optimizer)]

    def learned(self, seed: int) -> list[Change]:
        """Return what the model learns first: the images as they are, and in another order."""
        return [permuted(0, seed), permuted(1, seed)]

    def new(self, seed: int) -> Change:
        """Return the new task: a third order of the pixels."""
        return permuted(2, seed)

    def old(self, seed: int) -> list[OldTask]:
        """Return the old tasks."""
        changes = zip(("upright", "permuted"), self.learned(seed), strict=True)
        return [old_task(name, change) for name, change in changes]


class TwentyBehaviors(OneNewTask):
    """Each digit is a behavior, and so is each negative."""

    name = "twenty_behaviors"
    about = "20 behaviors: each digit, and each digit as a negative; Adam at 1e-3"

    def learned(self, seed: int) -> list[Change]:
        """Return the images and their negatives."""
        return [lambda rows: rows, inverted]

    def old(self, seed: int) -> list[OldTask]:
        """Return a behavior for each digit and each negative."""
        return [
            old_task(f"{name} {digit}", only([digit], change), probes=20, pool=20)
            for name, change in (("digit", self.learned(seed)[0]), ("negative", inverted))
            for digit in range(DIGITS)
        ]


class LongRun(OneNewTask):
    """3,000 steps."""

    name = "long_run"
    about = "3,000 steps on one new order of the pixels; Adam at 1e-3"
    steps = 3000
    batch = 32


class SmallBuffer(OneNewTask):
    """Few rows may be replayed."""

    name = "small_buffer"
    about = "6 and 3 rows may be replayed, 60 are monitored; Adam at 1e-3"

    def old(self, seed: int) -> list[OldTask]:
        """Return the old tasks with six and three rows to replay."""
        first, second = self.learned(seed)
        return [old_task("upright", first, pool=6), old_task("permuted", second, pool=3)]


class WrongBuffer(OneNewTask):
    """The rows for replay are those of a task that the model never learned."""

    name = "wrong_buffer"
    about = "the rows for replay are of a task that the model does not know; Adam at 1e-3"

    def old(self, seed: int) -> list[OldTask]:
        """Return the old tasks with rows of another one to replay."""
        wrong = old_task("wrong", permuted(3, seed), pool=2 * POOL).pool
        pools = (wrong[:POOL], wrong[POOL:])
        return [
            OldTask(own.name, own.probes, pool, own.test)
            for own, pool in zip(super().old(seed), pools, strict=True)
        ]


class ContradictingTask(OneNewTask):
    """The new task teaches other answers to the questions of an old one."""

    name = "contradicting"
    about = "the new task names each upright digit as the next one; Adam at 1e-3"

    def new(self, seed: int) -> Change:
        """Return the images as they are, with the next label."""
        return next_label


class HighRate(OneNewTask):
    """A learning rate 20 times as high."""

    name = "high_rate"
    about = "a new order of the pixels at 20 times the rate: Adam at 2e-2"
    optimizer = staticmethod(partial(adam, rate=2e-2))
