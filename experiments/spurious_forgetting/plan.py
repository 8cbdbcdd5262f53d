"""What the study of spurious forgetting runs, as its frozen protocol says."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.study_plan import StudyPlan


class Plan(StudyPlan):
    """The terms of the study; every field is covered by the protocol's hash.

    Attributes:
        at: steps of the new task at which is looked, the first of them 0.
        early, late: two of these, at which is recovered and set back layer by layer.
        counts, draws: of examples, for `diagnosis.recover`.
        relearned: steps on all questions about half of the people.
        collapsed: share of the score that must be gone at `early`, while of the statements at
            least `kept` are right: then the early fall is one of disposition.
        regained: share of the lost score that few examples must bring back.
        lower: by how much setting back embeddings and the lowest block must restore more than
            setting back the highest block and the head, as a share of the lost score.
        held: by how much freezing the low layers must leave a higher score at the end than
            freezing the high ones, and than freezing nothing.
        learned: share of the new questions that a run must answer to be compared.
    """

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
