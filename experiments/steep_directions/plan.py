"""Terms of the experiment on steep directions, as its preregistration fixes them."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.plan import StudyPlan


class Plan(StudyPlan):
    """Terms of the experiment; the hash of the preregistration covers every field.

    Attributes:
        world: fingerprint of the toy world.
        conditions: new tasks; `null` is the control and is excluded from the claims.
        steps, every: length of a run, and steps between two measurements.
        k, most: steep directions of a behavior, and probes whose gradients are computed.
        draws: of each kind of unrelated margins.
        near_zero: both whole cosines must be smaller for a measurement to count.
        clearly: multiple of chance that an alignment must reach to be clearly above chance.
    """

    world: str
    conditions: tuple[str, ...]
    steps: int = Field(ge=1)
    every: int = Field(ge=1)
    k: int = Field(ge=1)
    most: int = Field(ge=1)
    draws: int = Field(ge=1)
    near_zero: float = Field(gt=0)
    clearly: float = Field(ge=1)
    confirmatory: tuple[int, ...] = Field(min_length=3)
    exploratory: tuple[int, ...]

    def runs(self, exploratory: bool) -> list[tuple[str, int]]:
        """Return every (condition, seed)."""
        return [(c, seed) for seed in self.seeds(exploratory) for c in self.conditions]
