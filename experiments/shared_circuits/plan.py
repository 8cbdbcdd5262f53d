"""Terms of the experiment on shared circuits, as its preregistration fixes them."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field

from experiments.harness.plan import StudyPlan


class Condition(NamedTuple):
    """A new task, and the part of the model that is frozen meanwhile; empty: nothing."""

    task: str
    held: str = ""

    @property
    def name(self) -> str:
        """Return the name in names of cached runs."""
        return f"{self.task}-{self.held} held" if self.held else self.task

    def __str__(self) -> str:
        return f"{self.task}, {self.held} held" if self.held else self.task


class Plan(StudyPlan):
    """Terms of the experiment; the hash of the preregistration covers every field.

    Attributes:
        ground: fingerprint of the toy world with the tasks of this experiment.
        tasks: new tasks, learned with nothing frozen; `null` continues with the old mix.
        held: parts that are frozen in further runs, by task.
        steps, early, every: length of a run; number of first steps that are all measured; steps
            between two measurements afterwards.
        k, most: steep directions of a behavior, and probes whose gradients are computed.
        probes: of the new task, on which its components are found.
        share: of the heads and of the neurons that are frozen as shared, unshared or random.
        floor: score below which a behavior is broken.
        learned: accuracy from which a new task counts as learned.
        half: the share that counts as most of a harm.
        later: ratio of break steps from which a break counts as later.
        worse: difference of harms from which one counts as larger.
        ranked: rank correlation from which an early signal counts as ordering the harms.
        agree: seeds that must agree for a verdict.
        least_harm: smallest loss of which a share is computed.
    """

    exploratory: tuple[int, ...]
    confirmatory: tuple[int, ...]
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
        """Return every condition, those with nothing frozen first."""
        further = [Condition(task, part) for task, parts in self.held.items() for part in parts]
        return [*map(Condition, self.tasks), *further]
