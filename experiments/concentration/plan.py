"""Terms of the concentration experiment, as its preregistration fixes them."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.plan import StudyPlan


class Plan(StudyPlan):
    """Terms of the experiment; the hash of the preregistration covers every field.

    Attributes:
        world: fingerprint of the toy world with facts.
        toy, real: by role (refusal, over_refusal, skill, facts), the behavior of the toy world
            and the probe set of the real model.
        beside: roles with one-token answers, and the role for which that answer is wrong: both
            must keep their scores when directions are ablated.
        probes: of each behavior, passed by the model; on the real model the last ones in their
            order, since the first ones were used during development.
        groups: disjoint groups of probes; curvature is measured on each.
        top, samples: eigenvalues, and sign vectors for the trace.
        counts, draws: directions ablated in the middle layer, and draws of the directions that
            are compared.
        agree: number of the three measures that must say more (and none less) for a verdict.
    """

    exploratory: tuple[int, ...]
    confirmatory: tuple[int, ...]
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
