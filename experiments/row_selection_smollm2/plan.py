"""What the study of selectors on the real model runs, as its frozen protocol says."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.study_plan import StudyPlan


class Plan(StudyPlan):
    """The terms of the study; every field is covered by the protocol's hash.

    Attributes:
        methods: plain takes every row of a batch, the others are strategies.
        steps: optimizer steps of each run, the same for all methods.
        exploratory_steps: of the exploratory runs, which only show that everything runs.
        batch, ratio: rows that each step sees, and the share that selectors take of them.
        learning_rate, max_length, rank: of training.
        taught, held_out: rows of each category.
        protected, unseen: probes of the refusal pack that least_harm is given, and that nobody is.
    """

    methods: tuple[str, ...]
    steps: int = Field(ge=1)
    exploratory_steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    ratio: float = Field(gt=0, le=1)
    learning_rate: float = Field(gt=0)
    max_length: int = Field(ge=8)
    rank: int = Field(ge=1)
    taught: int = Field(ge=1)
    held_out: int = Field(ge=1)
    protected: int = Field(ge=1)
    unseen: int = Field(ge=1)
