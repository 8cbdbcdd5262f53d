"""Terms of the experiment on guards on SmolLM2, as its preregistration fixes them."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.plan import StudyPlan


class Plan(StudyPlan):
    """Terms of the experiment; the hash of the preregistration covers every field.

    Attributes:
        steps: length of each run.
        tried: guards that are tried on the exploratory seeds, together with the plain run.
        guards: guards that are compared on the confirmatory seeds.
        knobs: the value of each guard's one main parameter, by guard.
        eroding: the behavior that the example erodes.
        lost: largest share of the unguarded loss of its mean margin that AutoGuard may lose.
        worse: how much AutoGuard's task loss may exceed the unguarded run's, as a share.
    """

    exploratory: tuple[int, ...]
    confirmatory: tuple[int, ...]
    steps: int = Field(ge=1)
    tried: tuple[str, ...]
    guards: tuple[str, ...]
    knobs: dict[str, float]
    eroding: str
    lost: float = Field(gt=0, lt=1)
    worse: float = Field(gt=0, lt=1)
