"""Terms of the experiment on rerouted erosion, as its preregistration fixes them."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.plan import StudyPlan

Job = tuple[str, str, int]  # condition, task, seed


class Plan(StudyPlan):
    """Terms of the experiment; the hash of the preregistration covers every field.

    Attributes:
        world: fingerprint of the toy world.
        conditions: those that are run, by new task.
        steps: length of a run; window: usual length in this world, at which "early" is judged.
        at: steps with a measurement.
        count: features that are anchored at a layer, and that each re-selection may add.
        every: the penalties act once in this many steps.
        reselect: steps between two re-selections.
        strengths: of the penalties, by condition.
        early: share of the start's mean margin that each behavior must have at the window for
            the anchors to have held early.
        spared: largest movement of the anchored features that counts as none, as a share of the
            movement of the same features in the unguarded run.
        learned: accuracy on the new task at the end that "stopped" requires.
        as_well: share of the margin kept early by the chosen features from which random features
            do as well.
        seeds_of: number of seeds that must show a claim.
    """

    exploratory: tuple[int, ...]
    confirmatory: tuple[int, ...]
    world: str
    conditions: dict[str, tuple[str, ...]]
    steps: int = Field(ge=1)
    window: int = Field(ge=1)
    at: tuple[int, ...]
    count: int = Field(ge=1)
    every: int = Field(ge=1)
    reselect: int = Field(ge=1)
    strengths: dict[str, float]
    early: float = Field(gt=0, lt=1)
    spared: float = Field(gt=0, lt=1)
    learned: float = Field(gt=0, le=1)
    as_well: float = Field(gt=0, le=1)
    seeds_of: int = Field(ge=1)

    def jobs(self, exploratory: bool) -> list[Job]:
        """Return every (condition, task, seed)."""
        return [
            (condition, task, seed)
            for seed in self.seeds(exploratory)
            for task, conditions in self.conditions.items()
            for condition in conditions
        ]
