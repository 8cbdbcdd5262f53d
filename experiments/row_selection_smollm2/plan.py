"""Terms of the experiment on row selection, as its preregistration fixes them."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.plan import StudyPlan


class Plan(StudyPlan):
    """Terms of the experiment; the hash of the preregistration covers every field.

    Attributes:
        methods: `plain` learns every row of a batch, the others are strategies.
        steps: optimizer steps of each run, the same for all methods.
        exploratory_steps: of exploratory runs, which only show that everything runs.
        batch, ratio: rows of each step, and the fraction that selectors select.
        learning_rate, max_length, rank: of training.
        taught, held_out: rows of each category.
        protected, unseen: refusal probes given to least_harm, and given to no method.
    """

    exploratory: tuple[int, ...]
    confirmatory: tuple[int, ...]
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
