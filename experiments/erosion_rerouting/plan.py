"""What the detour study runs, as its frozen protocol says."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.study_plan import StudyPlan

Job = tuple[str, str, int]  # condition, task, seed


class Plan(StudyPlan):
    """The terms of the study; every field is covered by the protocol's hash.

    Attributes:
        world: fingerprint of the toy world.
        conditions: those that are run, by the new task.
        steps: length of a run; window: the world's usual one, at which "early" is judged.
        at: steps at which everything is measured.
        count: features that are held at a layer, and that join at most at each re-selection.
        every: the penalties act at each so many steps.
        reselect: steps between two re-selections.
        strengths: of the penalties, by condition.
        early: share of the start's mean margin that each behaviour must have at the window for the
            features to have held it early.
        spared: movement of the held features, as a share of what the same features moved in the
            unguarded run by then, up to which they stayed where they were.
        learned: accuracy on the new task at the end, without which nothing counts as stopped.
        as_well: share of the margin that the chosen features kept early, from which on random ones
            do as well.
        seeds_of: how many seeds must show a thing for a claim to be supported.
    """

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
        """Every (condition, task, seed)."""
        seeds = self.exploratory if exploratory else self.confirmatory
        return [
            (condition, task, seed)
            for seed in seeds
            for task, conditions in self.conditions.items()
            for condition in conditions
        ]
