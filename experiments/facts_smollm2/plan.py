"""Terms of the study of facts in SmolLM2, as its preregistration fixes them."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.plan import StudyPlan


class Plan(StudyPlan):
    """Terms of the study; the hash of the preregistration covers every field.

    Attributes:
        exploratory, confirmatory: seeds of the facts, of the trainings and of their batches.
        cases: checkpoints of each seed, by name.
        people: made-up people, each with one fact.
        probes, examples: people that are asked about, and that are relearned; the others carry the
            trainings that touch no fact of either.
        batch: rows of a step.
        rank, rate: of the adapters, which stand in the upper half of the blocks.
        style_rate: rate of the trainings that change no fact, which are to be gentle.
        teaching: steps of teaching.
        training: most steps of a later training.
        every: steps between two looks at the probes.
        draws: of examples, as many as `diagnosis.recover` takes (1, 2, 5 or 10), for it.
        accuracy: aimed share of right verdicts among those given.
        known: share of the lost facts that the test of the truth must find for an alignment loss,
            and may not find for a loss of knowledge.
        unknown: share up to which ascent counts as a loss of knowledge.
    """

    exploratory: tuple[int, ...]
    confirmatory: tuple[int, ...]
    cases: tuple[str, ...]
    people: int = Field(ge=20)
    probes: int = Field(ge=6)
    examples: int = Field(ge=5)
    batch: int = Field(ge=1)
    rank: int = Field(ge=1)
    rate: float = Field(gt=0)
    style_rate: float = Field(gt=0)
    teaching: int = Field(ge=0)
    training: int = Field(ge=0)
    every: int = Field(ge=1)
    draws: int = Field(ge=1)
    accuracy: float = Field(gt=0, le=1)
    known: float = Field(gt=0, le=1)
    unknown: float = Field(ge=0, lt=1)
