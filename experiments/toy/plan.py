"""Terms of the toy experiment, as its preregistration fixes them."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.plan import StudyPlan

NULL = "null"


class Plan(StudyPlan):
    """Terms of the experiment; the hash of the preregistration covers every field.

    Attributes:
        world: fingerprint of the toy world.
        steps: length of each run, in optimizer steps.
        every: the monitor's longest gap between probe evaluations.
        conditions: new tasks; `null` continues with the old mix.
        confirmatory: seeds of every condition except `null`; `null_seeds`: those of `null`.
        exploratory: seeds on which everything above was chosen, disjoint from the others.
        claim_steps: number of first steps in which predicted and realized change are compared.
        ages: staleness of h_b in that comparison, in steps.
        trivial_check: "alert at this check unless the run is null".
        slope_speedup: probe evaluations of the slope detector for each one of the forecast's.
        fixed: fixed thresholds: signal, side and value.
    """

    world: str
    steps: int = Field(ge=1)
    every: int = Field(ge=1)
    conditions: tuple[str, ...]
    confirmatory: tuple[int, ...]
    null_seeds: tuple[int, ...]
    exploratory: tuple[int, ...]
    claim_steps: int
    ages: tuple[int, ...]
    trivial_check: int
    slope_speedup: int
    fixed: tuple[dict[str, str | float | int | bool], ...]

    def reported_seeds(self) -> tuple[int, ...]:
        """Return the confirmatory seeds and those of `null`."""
        return self.confirmatory + self.null_seeds

    def runs(self, exploratory: bool) -> list[tuple[str, int]]:
        """Return every (condition, seed)."""
        if exploratory:
            return [(c, s) for s in self.exploratory for c in self.conditions]
        own = {c: self.null_seeds if c == NULL else self.confirmatory for c in self.conditions}
        pairs = [(c, s) for c, seeds in own.items() for s in seeds]
        return sorted(pairs, key=lambda pair: pair[1])
