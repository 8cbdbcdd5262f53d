"""Terms of the experiment on loss classification, as its preregistration fixes them."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.plan import StudyPlan


class Plan(StudyPlan):
    """Terms of the experiment; the hash of the preregistration covers every field.

    Attributes:
        cases: checkpoints that are made for each seed, by name.
        counts, draws: of examples, for `diagnosis.recover`.
        lost, shown, gone, kept, unsaid, all, habit: thresholds of the verdict, those of
            `diagnosis.recovery`.
        accuracy: aimed share of right verdicts among those given.
        verified: tolerance between the constructed share of knowledge and the measured one.
    """

    exploratory: tuple[int, ...]
    confirmatory: tuple[int, ...]
    cases: tuple[str, ...]
    counts: tuple[int, ...]
    draws: int = Field(ge=1)
    lost: float
    shown: float
    gone: float
    kept: float
    unsaid: float
    all: float
    habit: float
    accuracy: float = Field(gt=0, le=1)
    verified: float = Field(gt=0, lt=1)
