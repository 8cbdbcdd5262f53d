"""Terms of the experiment, as its preregistration fixes them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Self

from pydantic import Field

from experiments.continual_real.methods import FRONT, MAIN, METHODS, SWEPT
from experiments.continual_real.rows import TASKS
from experiments.harness.plan import StudyPlan
from experiments.harness.preregistration import Preregistration, PreregistrationError
from riprap._config import StrictModel

GIVEN = "given"  # the order of tasks in which all methods run
Job = tuple[str, float, str, int, int]  # method, rate, order, base, seed of the data


class Setting(StrictModel):
    """Settings of all runs. Their hash names the cached runs, so that an amendment keeps them.

    Attributes:
        steps, batch: updates of each task, and rows of which each update learns or selects.
        ratio: share of a batch that selection learns from.
        max_tokens: of a row, prompt and response; longer rows are left out, none is cut.
        rank, alpha: of the adapter of each task, which is merged after it.
        replayed: share of each batch that `replay_10` replaces.
        filtered: share of the rows that `preflight_filtered` leaves out.
        probe_every: longest gap between two evaluations of the monitor, in steps.
        monitored, unseen: probes of each refusal behavior that the base passes: given to the
            monitor and its guards, and given to no method; the others may be replayed.
        held_out: rows of each task that tell its loss.
        asked: harmful requests that are answered: half AdvBench's, half StrongREJECT's.
        safe: XSTest's safe prompts that are answered, before training and at the end.
        new_tokens: of each answer.
        choices: questions of each multiple choice, before training and at the end.
        coordinates: k of the TopK cosine.
    """

    steps: int = Field(ge=2)
    batch: int = Field(ge=1)
    ratio: float = Field(gt=0, le=1)
    max_tokens: int = Field(ge=16)
    rank: int = Field(ge=1)
    alpha: int = Field(ge=1)
    replayed: float = Field(gt=0, lt=1)
    filtered: float = Field(gt=0, lt=1)
    probe_every: int = Field(ge=1)
    monitored: int = Field(ge=1)
    unseen: int = Field(ge=1)
    held_out: int = Field(ge=1)
    asked: int = Field(ge=2)
    safe: int = Field(ge=1)
    new_tokens: int = Field(ge=1)
    choices: int = Field(ge=1)
    coordinates: int = Field(ge=1)

    @property
    def terms(self) -> str:
        """Return the hash that names cached runs."""
        return self.config_hash()


class Deep(StrictModel):
    """Settings of the stage `--deep`. Their hash names its cached runs.

    Attributes:
        methods: that run, on the first base and seed.
        latents, active: of the sparse autoencoder, and those that a token may use.
        tokens: activations that train it: of task rows and of prompts that may be replayed, beside
            those of the last token of each such prompt.
        steps, rate: of its training on the base's activations, full batches.
        update_steps, update_rate: of its further training after each task.
        refusing: latents of refusal.
        lost: share of its use at the base below which a latent has died.
        fall: share of its start by which a series must fall before it counts as a fall.
        moved: cosine of a latent's direction with that at the base below which it has moved.
        warm_steps, scored_rows: of preflight.
        directions, points, radius: of the basin; `around`: probes of each behavior there.
        questions: rows of each task that give its score.
        longest: tokens of such a row; `answer_tokens`: of its answer.
        examples: that the repair learns: half refusals, half answers to harmless prompts.
    """

    methods: tuple[str, ...]
    latents: int = Field(ge=2)
    active: int = Field(ge=1)
    tokens: int = Field(ge=1)
    steps: int = Field(ge=1)
    rate: float = Field(gt=0)
    update_steps: int = Field(ge=1)
    update_rate: float = Field(gt=0)
    refusing: int = Field(ge=1)
    lost: float = Field(gt=0, lt=1)
    fall: float = Field(gt=0, lt=1)
    moved: float = Field(gt=0, lt=1)
    warm_steps: int = Field(ge=1)
    scored_rows: int = Field(ge=1)
    directions: int = Field(ge=1)
    points: int = Field(ge=3)
    radius: float = Field(gt=0)
    around: int = Field(ge=1)
    questions: int = Field(ge=1)
    longest: int = Field(ge=16)
    answer_tokens: int = Field(ge=1)
    examples: int = Field(ge=2)

    @property
    def terms(self) -> str:
        """Return the hash that names cached runs."""
        return self.config_hash()


class Plan(StudyPlan):
    """Terms of the experiment; the hash of the preregistration covers every field.

    Attributes:
        exploratory, confirmatory: seeds of the order of the data; the first confirmatory one is
            that of the methods and orders that run once.
        explored, bases: teaching seeds of the exploratory bases and of the confirmatory ones.
        orders: the tasks in each order, by name; all methods run in `given`.
        rates: learning rates of the search, ascending; `choose_rate` in `analysis` is its rule.
        eroded: attack success at which plain training is to end, at the least, on each of
            the exploratory bases.
        least: smallest difference of attack success that is called an effect.
        spared: largest lack of learning, as a share, at which an effect stands as it is.
        reordered: methods that run in the other orders too.
        deep: settings of the stage `--deep`.
        claims: what is claimed, by the name of its verdict; `rules`: how it is decided.
    """

    exploratory: tuple[int, ...]
    confirmatory: tuple[int, ...]
    explored: tuple[int, ...] = Field(min_length=1)
    bases: tuple[int, ...]
    setting: Setting
    orders: dict[str, tuple[str, ...]]
    rates: tuple[float, ...]
    eroded: float = Field(gt=0, lt=1)
    least: float = Field(gt=0)
    spared: float = Field(gt=0, lt=1)
    reordered: tuple[str, ...]
    deep: Deep
    claims: dict[str, str]
    rules: dict[str, str]

    @classmethod
    def of(cls, preregistration: Preregistration) -> Self:
        """Return the plan inside a preregistration; see `StudyPlan.of`.

        Raises:
            PreregistrationError: also if bases overlap, an order is none, or a method is unknown.
        """
        plan = super().of(preregistration)
        if both := set(plan.explored) & set(plan.bases):
            raise PreregistrationError(f"base {min(both)} is exploratory and confirmatory")
        if GIVEN not in plan.orders:
            raise PreregistrationError(f"orders has no {GIVEN!r}, in which all methods run")
        for name, tasks in plan.orders.items():
            if sorted(tasks) != sorted(TASKS):
                raise PreregistrationError(f"order {name!r} does not have each of {list(TASKS)}")
        if unknown := {*plan.reordered, *plan.deep.methods} - set(METHODS):
            raise PreregistrationError(f"no method {sorted(unknown)[0]!r}")
        return plan

    def search_jobs(self) -> list[Job]:
        """Return plain training at each rate, on the exploratory bases and seeds."""
        cells = product(self.rates, self.explored, self.exploratory)
        return [("plain", rate, GIVEN, base, seed) for rate, base, seed in cells]

    def deep_jobs(
        self, rate: float, exploratory: bool = False
    ) -> list[tuple[str, float, int, int]]:
        """Return the runs of `--deep`: method, rate, and the first base and seed."""
        base = (self.explored if exploratory else self.bases)[0]
        return [(m, rate, base, self.seeds(exploratory)[0]) for m in self.deep.methods]

    def jobs(self, rate: float, exploratory: bool = False) -> list[Job]:
        """Return all runs at a learning rate, the most important first.

        The main methods on all bases and seeds; plain training at half the rate; the other methods
        on one base and seed; the other orders of tasks; the other shares of a batch.
        """
        first, bases = self.seeds(exploratory), self.explored if exploratory else self.bases
        rest = [name for name in METHODS if name not in (*MAIN, *FRONT, *SWEPT)]
        others = [name for name in self.orders if name != GIVEN]
        one = [(bases[0], first[0])]
        every = [(base, seed) for seed in first for base in bases]
        groups: list[Iterable[tuple[str, str, tuple[int, int]]]] = [
            ((method, GIVEN, cell) for cell in every for method in MAIN),
            ((method, GIVEN, cell) for cell in every for method in FRONT),
            ((method, GIVEN, cell) for cell in one for method in rest),
            ((m, order, cell) for cell in one for order in others for m in self.reordered),
            ((method, GIVEN, cell) for cell in one for method in SWEPT),
        ]
        return [(m, rate, order, *cell) for group in groups for m, order, cell in group]
