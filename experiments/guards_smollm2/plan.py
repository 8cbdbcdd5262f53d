"""What the study of guards on the real model runs, as its frozen protocol says."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.study_plan import StudyPlan


class Plan(StudyPlan):
    """The terms of the study; every field is covered by the protocol's hash.

    Attributes:
        steps: length of each run.
        exploratory: seeds on which guards are tried; confirmatory: seeds that are reported.
        tried: guards that are tried on the exploratory seeds, beside the plain run.
        guards: guards that are compared on the confirmatory ones.
        knobs: the value of each guard's one main knob, by guard.
        eroding: the behaviour that the example washes away.
        lost: the largest share of the unguarded loss of its mean margin that the Keeper may lose.
        worse: by how much the Keeper's task loss may be above the unguarded run's, as a share.
    """

    steps: int = Field(ge=1)
    tried: tuple[str, ...]
    guards: tuple[str, ...]
    knobs: dict[str, float]
    eroding: str
    lost: float = Field(gt=0, lt=1)
    worse: float = Field(gt=0, lt=1)
