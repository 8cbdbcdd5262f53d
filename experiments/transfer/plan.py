"""Terms of the transfer experiment, as its preregistration fixes them."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.plan import StudyPlan
from riprap._config import StrictModel

PLAIN = "plain"


class Front(StrictModel):
    """Comparison of AutoGuard with other guards at equal time.

    Attributes:
        steps: length of the plain run, whose processor time is the unit.
        budgets: times of the measurements, in that unit.
        seeds: confirmatory seeds of this comparison alone.
        guards: the other guards, together with the plain run, at their chosen knobs.
        kept: score of each behavior at a budget, and share of the plain run's new-task accuracy,
            that AutoGuard must reach to pass.
    """

    steps: int = Field(ge=1)
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    guards: tuple[str, ...]
    kept: float = Field(gt=0, le=1)


class Plan(StudyPlan):
    """Terms of the experiment; the hash of the preregistration covers every field.

    Attributes:
        world: fingerprint of the world with facts.
        tasks: new tasks; `steps`: length of training on each.
        every: the monitor's longest gap between probe evaluations.
        confirmatory, exploratory: seeds; knobs are chosen only on the exploratory seeds.
        knobs: the value of each guard's one main parameter, by guard; empty before the search.
        learned: share of the plain run's new-task accuracy below which a knob's value is
            discounted in the search.
    """

    world: str
    tasks: tuple[str, ...]
    steps: int = Field(ge=1)
    every: int = Field(ge=1)
    confirmatory: tuple[int, ...]
    exploratory: tuple[int, ...]
    knobs: dict[str, float] = Field(default_factory=dict)
    learned: float = Field(default=0.95, gt=0, le=1)
    front: Front

    def reported_seeds(self) -> tuple[int, ...]:
        """Return the confirmatory seeds of both comparisons."""
        return self.confirmatory + self.front.seeds
