"""The runs: six conditions, with settings drawn from balanced lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from experiments.onset.unlike import digits, signals, sorting
from experiments.onset.unlike.base import World
from experiments.onset.unlike.updates import OPTIMIZERS, SCHEDULES

WORLDS: dict[str, World] = {own.WORLD.name: own.WORLD for own in (sorting, digits, signals)}
MODELS = 3  # pretrained models of each world, trained for longer or for shorter
SHARES = (0.1, 0.3, 1.0)  # of the world's highest rate
STEPS = (150, 200, 300, 500)
REPLAY = (0.25, 0.5)  # share of old rows in a batch
# Runs of each condition in each world.
CONDITIONS = {
    "old": 6,  # the first tasks go on
    "related": 8,  # a related task
    "new": 14,  # a new task
    "replay": 10,  # a new task, with old rows in each batch
    "late": 6,  # the first tasks or a related one; later a new one
    "return": 6,  # a new task, and soon the first tasks again
}
OLD = "old"  # the mixture of the first tasks
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Run:
    """The settings of a run.

    Attributes:
        model: number of the pretrained model.
        tasks: what is trained on, in this order; `old` or a name of the world's tasks.
        change: step of the change from the first task to the second; `steps` if there is none.
        share: highest rate of the run, as a share of the world's.
        replay: share of old rows in a batch.
    """

    world: str
    condition: str
    number: int
    model: int
    tasks: tuple[str, ...]
    change: int
    optimizer: str
    schedule: str
    share: float
    replay: float
    steps: int

    @property
    def name(self) -> str:
        """Return the name of the run, unique in the corpus."""
        return f"{self.world}-{self.condition}-{self.number:02d}"

    @property
    def rate(self) -> float:
        """Return the highest rate of the run."""
        return WORLDS[self.world].rates[self.optimizer] * self.share

    @property
    def seed(self) -> list[int]:
        """Return the seed of the run's rows."""
        place = [list(WORLDS).index(self.world), list(CONDITIONS).index(self.condition)]
        return [*place, self.number]

    def about(self) -> dict[str, Any]:
        """Return what tables group by."""
        return asdict(self) | {"tasks": list(self.tasks), "rate": self.rate}


def runs() -> list[Run]:
    """Return all runs of the corpus, the same ones at each call."""
    return [run for place, world in enumerate(WORLDS.values()) for run in _of_world(world, place)]


def _of_world(world: World, place: int) -> list[Run]:
    planned = []
    for index, (condition, count) in enumerate(CONDITIONS.items()):
        rng = np.random.default_rng([place, index])
        columns = zip(
            _balanced(OPTIMIZERS, count, rng),
            _balanced(SCHEDULES, count, rng),
            _balanced(SHARES, count, rng),
            _balanced(STEPS, count, rng),
            _balanced(range(MODELS), count, rng),
            _balanced(list(world.new), count, rng),
            _balanced([*world.related, OLD], count, rng),
            _balanced(REPLAY, count, rng),
            strict=True,
        )
        for number, values in enumerate(columns):
            optimizer, schedule, share, steps, model, new, mild, replay = values
            tasks: tuple[str, ...] = (new,)
            change = steps
            if condition == "old":
                tasks = (OLD,)
            elif condition == "related":
                tasks = (mild if mild != OLD else next(iter(world.related)),)
            elif condition == "late":
                tasks, change = (mild, new), round(steps * rng.uniform(0.35, 0.75))
            elif condition == "return":
                tasks, change = (new, OLD), round(steps * rng.uniform(0.04, 0.2))
            replay = replay if condition == "replay" else 0.0
            planned.append(
                Run(
                    world.name, condition, number, model, tasks, change, optimizer, schedule,
                    share, replay, steps,
                )
            )  # fmt: skip
    return planned


def _balanced(values: Sequence[Kind], count: int, rng: np.random.Generator) -> list[Kind]:
    """Return `count` of the values in random order, each about as often."""
    start = int(rng.integers(len(values)))
    repeated = [values[(start + index) % len(values)] for index in range(count)]
    return [repeated[place] for place in rng.permutation(count)]
