"""Terms of the experiment on spurious forgetting, as its preregistration fixes them."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.plan import StudyPlan


class Plan(StudyPlan):
    """Terms of the experiment; the hash of the preregistration covers every field.

    Attributes:
        at: steps of the new task with an evaluation; the first is 0.
        early, late: two of these steps, with recovery and layer-wise restoration.
        counts, draws: of examples, for `diagnosis.recover`.
        relearned: steps on all questions about half of the people.
        collapsed: share of the score that must be lost at `early`, while a share of at least
            `kept` of the statements is right: then the early loss is one of disposition.
        regained: share of the lost score that few examples must recover.
        lower: by how much restoring embeddings and the lowest block must recover more than
            restoring the highest block and the head, as a share of the lost score.
        held: by how much freezing the low layers must leave a higher score at the end than
            freezing the high ones, and than freezing nothing.
        learned: share of the new questions that a run must answer to be compared.
    """

    exploratory: tuple[int, ...]
    confirmatory: tuple[int, ...]
    at: tuple[int, ...]
    early: int
    late: int
    counts: tuple[int, ...]
    draws: int = Field(ge=1)
    relearned: int
    collapsed: float
    kept: float
    regained: float
    lower: float
    held: float
    learned: float
