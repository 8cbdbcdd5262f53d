"""What the circuit study runs, as its frozen protocol says."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field

from experiments.harness.study_plan import StudyPlan


class Condition(NamedTuple):
    """A new task, and what of the model is held still while it is learned; empty: nothing."""

    task: str
    held: str = ""

    def __str__(self) -> str:
        return f"{self.task}, {self.held} held" if self.held else self.task


class Plan(StudyPlan):
    """The terms of the study; every field is covered by the protocol's hash.

    Attributes:
        ground: fingerprint of the toy world with the tasks of this study.
        tasks: new tasks, learned with nothing held; `null` goes on with the old mix.
        held: by task, what is held in further runs of it.
        steps, early, every: length of a run; steps at its start that are all measured; steps
            between two measurements afterwards.
        k, most: steep directions of a behaviour, and probes whose gradients are taken.
        probes: of the new task, on which its units are found.
        share: of the heads and of the neurons, how many are held as shared, unshared or random.
        floor: score under which a behaviour is broken.
        learned: accuracy from which a new task counts as learned.
        half: the share that tells most of a harm from the lesser part of it.
        later: how many times as late a break must be to count as later.
        worse: by how much a harm must be above another to count as more.
        ranked: rank correlation from which an early signal counts as ordering the harms.
        agree: seeds that must agree for a verdict.
        least_harm: a share of a loss smaller than this is not taken.
    """

    ground: str
    tasks: tuple[str, ...]
    held: dict[str, tuple[str, ...]]
    steps: int = Field(ge=1)
    early: int = Field(ge=1)
    every: int = Field(ge=1)
    k: int = Field(ge=1)
    most: int = Field(ge=1)
    probes: int = Field(ge=2)
    share: float = Field(gt=0, lt=1)
    floor: float = Field(gt=0, lt=1)
    learned: float = Field(gt=0, lt=1)
    half: float = Field(gt=0, lt=1)
    later: float = Field(gt=1)
    worse: float = Field(gt=0)
    ranked: float = Field(gt=0, lt=1)
    agree: int = Field(ge=1)
    least_harm: float = Field(gt=0)

    def conditions(self) -> list[Condition]:
        """Every condition, those with nothing held first."""
        further = [Condition(task, one) for task, every in self.held.items() for one in every]
        return [*map(Condition, self.tasks), *further]
