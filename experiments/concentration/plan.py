"""What the study of concentration measures, as its frozen protocol says."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.study_plan import StudyPlan


class Plan(StudyPlan):
    """The terms of the study; every field is covered by the protocol's hash.

    Attributes:
        world: fingerprint of the toy world with facts.
        toy, real: by role (refusal, over_refusal, skill, facts), the behaviour of the toy world
            and the pack of the real model.
        beside: roles of one answer, and the role for which it is wrong: both must keep their
            scores when directions are ablated.
        probes: of each behaviour, passed by the model; on the real model the last of their order,
            of which the first were looked at while the study was made.
        groups: disjoint groups of the probes, of each of which the curvature is taken.
        top, samples: eigenvalues, and signs for the trace.
        counts, draws: directions ablated in the middle layer, and draws of those compared with.
        agree: of the three measures, how many must say more (and none less) for a verdict.
    """

    world: str
    toy: dict[str, str]
    real: dict[str, str]
    beside: dict[str, str]
    probes: int = Field(ge=4)
    groups: int = Field(ge=2)
    top: int = Field(ge=1)
    samples: int = Field(ge=2)
    counts: tuple[int, ...]
    draws: int = Field(ge=1)
    agree: int = Field(ge=1)
