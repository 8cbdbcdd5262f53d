"""Terms of the depth experiment, as its preregistration fixes them."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.plan import StudyPlan
from riprap._config import StrictModel


class Degree(StrictModel):
    """Recipe by which B was trained, together with the other old tasks.

    Attributes:
        steps: of training.
        decay: weight decay of that training.
        share: of B in each batch.
    """

    steps: int = Field(ge=1)
    decay: float = Field(ge=0)
    share: float = Field(gt=0, lt=1)

    @property
    def name(self) -> str:
        """Return a name for a folder."""
        return f"{self.steps}-{self.decay:g}-{self.share:g}"


class Plan(StudyPlan):
    """Terms of the experiment; the hash of the preregistration covers every field.

    Attributes:
        world: fingerprint of the toy world, except for how B was installed.
        degrees: how B is installed.
        condition: the new task that erodes B.
        steps: length of a run.
        every: the monitor's longest gap between probe evaluations, in steps.
        window_from: the level whose first alert opens the detection window; the break closes it.
    """

    world: str
    degrees: tuple[Degree, ...] = Field(min_length=6)
    condition: str
    steps: int
    every: int
    confirmatory: tuple[int, ...]
    exploratory: tuple[int, ...]
    window_from: str

    def runs(self, exploratory: bool) -> list[tuple[Degree, int]]:
        """Return every (degree, seed)."""
        return [(degree, seed) for seed in self.seeds(exploratory) for degree in self.degrees]
