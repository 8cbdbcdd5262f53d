"""What the study of verdicts runs, as its frozen protocol says."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.study_plan import StudyPlan


class Plan(StudyPlan):
    """The terms of the study; every field is covered by the protocol's hash.

    Attributes:
        cases: checkpoints that are made for each seed, by name.
        counts, draws: of examples, for `diagnosis.recover`.
        lost, shown, gone, kept, unsaid, all, habit: thresholds of the verdict, those of
            `diagnosis.verdict`.
        accuracy: share of right verdicts, of those that are given, that is aimed at.
        verified: how far what is left by construction may be from what tests of the truth find.
    """

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
