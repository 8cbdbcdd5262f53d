"""Plan of the runs: drawn once from a seed, and spread evenly over optimizers and schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from experiments.onset.held_out.optimizers import OPTIMIZERS, SCHEDULES
from experiments.onset.held_out.world import OLD, World

# Rates at which data of a far task, at a constant rate, breaks behaviors within some 20 steps.
HIGH = {
    "characters": {"sgd": 0.02, "adamw": 1e-3, "adafactor": 6e-3, "muon": 8e-3},
    "intents": {"sgd": 6e-3, "adamw": 1.2e-3, "adafactor": 5e-3, "muon": 1.2e-2},
    "sequences": {"sgd": 0.03, "adamw": 3e-3, "adafactor": 8e-3, "muon": 1.5e-2},
    "graphs": {"sgd": 1e-3, "adamw": 1e-4, "adafactor": 8e-4, "muon": 1e-3},
}


@dataclass(frozen=True)
class Recipe:
    """Kind of a run.

    Attributes:
        world: name of its world.
        kind: what the run was planned to be; a key of `KINDS`.
        task: data that it trains on.
        then: data after the switch; None: no switch.
        switch: step at which `then` begins; the number of steps where there is none.
        optimizer: one of `OPTIMIZERS`.
        schedule: one of `SCHEDULES`.
        rate: largest rate, as a share of the world's high one.
        replay: share of a batch that is old rows.
        steps: number of optimizer steps.
        seed: of the batches.
    """

    world: str
    kind: str
    task: str
    then: str | None
    switch: int
    optimizer: str
    schedule: str
    rate: float
    replay: float
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """Name of the run, from all that it is."""
        data = self.task if self.then is None else f"{self.task}~{self.then}@{self.switch}"
        parts = (
            self.world, self.kind, data, self.optimizer, self.schedule, f"rate{self.rate:g}",
            f"replay{self.replay:g}", f"{self.steps}steps", f"seed{self.seed}",
        )  # fmt: skip
        return "-".join(part.replace(" ", "_") for part in parts)

    @property
    def learning_rate(self) -> float:
        """Largest rate of the run."""
        return self.rate * HIGH[self.world][self.optimizer]

    def about(self) -> dict[str, Any]:
        """Return the facts that tables group by."""
        return asdict(self) | {"learning_rate": self.learning_rate}


@dataclass(frozen=True)
class Kind:
    """A kind of run: how many there are in each world, and the ranges that they are drawn from.

    Attributes:
        runs: number in each world.
        tasks: groups of tasks: "old", "near", "far".
        rate: smallest and largest rate, as a share of the world's high one.
        steps: fewest and most.
        replay: shares of old rows.
        then: groups of tasks after a switch; empty: no switch.
        switch: earliest and latest switch, as a share of the run.
    """

    runs: int
    tasks: tuple[str, ...]
    rate: tuple[float, float]
    steps: tuple[int, int]
    replay: tuple[float, ...] = (0.0,)
    then: tuple[str, ...] = ()
    switch: tuple[float, float] = (1.0, 1.0)


KINDS = {
    # Planned to be harmless: old data, mild rates, much replay, a detour that ends.
    "continued": Kind(4, ("old",), (0.1, 0.5), (150, 350)),
    "gentle": Kind(5, ("near",), (0.1, 0.2), (150, 300), (0.0, 0.25, 0.5)),
    "replayed": Kind(5, ("near", "near", "near", "far"), (0.2, 0.5), (150, 350), (0.5,)),
    "detour": Kind(3, ("near", "far"), (0.1, 0.3), (150, 350), (0.25,), ("old",), (0.1, 0.3)),
    # Planned to harm: at once, slowly, late and suddenly, and in spite of replay.
    "fast": Kind(4, ("near", "far", "far"), (0.4, 1.0), (150, 250)),
    "slow": Kind(3, ("near", "far", "far"), (0.1, 0.25), (350, 600)),
    "late": Kind(5, ("old", "old", "near"), (0.2, 0.7), (200, 400), (0.0,), ("far",), (0.5, 0.75)),
    "in spite": Kind(2, ("far",), (0.4, 1.0), (150, 300), (0.25,)),
}


def plan(world: World, seed: int = 17) -> list[Recipe]:
    """Return the runs of a world."""
    rng = np.random.default_rng([seed, *world.name.encode()])
    runs = []
    for name, kind in KINDS.items():
        optimizers = _spread(OPTIMIZERS, kind.runs, rng)
        schedules = _spread(SCHEDULES, kind.runs, rng)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            steps = int(rng.integers(kind.steps[0], kind.steps[1] + 1))
            low, high = np.log(kind.rate)
            runs.append(
                Recipe(
                    world=world.name,
                    kind=name,
                    task=_task(world, kind.tasks, rng),
                    then=_task(world, kind.then, rng) if kind.then else None,
                    switch=int(steps * rng.uniform(*kind.switch)),
                    optimizer=optimizer,
                    schedule=schedule,
                    rate=round(float(np.exp(rng.uniform(low, high))), 3),
                    replay=float(rng.choice(kind.replay)),
                    steps=steps,
                    seed=int(rng.integers(100_000)),
                )
            )
    return runs


def _spread(choices: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Return `count` choices in random order, each about as often."""
    turns = -(-count // len(choices))
    drawn = [choices[at] for _ in range(turns) for at in rng.permutation(len(choices))]
    return drawn[:count]


def _task(world: World, groups: tuple[str, ...], rng: np.random.Generator) -> str:
    """Draw a group, then one of its tasks."""
    tasks = {"old": (OLD,), "near": world.near, "far": world.far}[str(rng.choice(groups))]
    return str(rng.choice(tasks))
