"""Terms of the experiment on detectors, as its preregistration fixes them."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.plan import StudyPlan
from riprap.detectors import AnyDetector

NULL = "null"


class Plan(StudyPlan):
    """Terms of the experiment; the hash of the preregistration covers every field.

    Attributes:
        world: fingerprint of the toy world.
        steps: length of each recorded run, in optimizer steps.
        every: the monitor's longest gap between probe evaluations.
        conditions: new tasks of the recorded runs.
        confirmatory: seeds of the new tasks; `null_seeds`: those of `null`.
        exploratory: seeds on which everything was chosen, disjoint from the others.
        bootstraps: number of resampled null runs.
        planted: number of resampled runs for each shape and size of a planted decline.
        onset: first step of a planted decline.
        span: duration in steps (linear), time constant (exponential) or period (oscillating).
        sizes: depths of the planted declines, as shares of the start's mean margin.
        spread: standard deviation, over probes, of the logarithm of a decline's depth.
        rivals: detectors that are compared with those of the preregistration.
    """

    world: str
    steps: int = Field(ge=1)
    every: int = Field(ge=1)
    conditions: tuple[str, ...]
    confirmatory: tuple[int, ...]
    null_seeds: tuple[int, ...]
    exploratory: tuple[int, ...]
    bootstraps: int = Field(ge=1)
    planted: int = Field(ge=1)
    onset: int
    span: int
    sizes: tuple[float, ...]
    spread: float
    rivals: tuple[AnyDetector, ...]

    def reported_seeds(self) -> tuple[int, ...]:
        """Return the confirmatory seeds and those of `null`."""
        return self.confirmatory + self.null_seeds

    def runs(self) -> list[tuple[str, int]]:
        """Return every (condition, seed) of the recorded runs."""
        new = [(c, s) for s in self.confirmatory for c in self.conditions]
        return new + [(NULL, s) for s in self.null_seeds]
