"""Terms of the continual experiment, as its preregistration fixes them."""

from __future__ import annotations

from itertools import product
from typing import Self

from pydantic import Field

from experiments.continual.methods import GUARDS, METHODS, PLAIN
from experiments.harness.plan import StudyPlan
from experiments.harness.preregistration import Preregistration, PreregistrationError

GIVEN = "given"  # the order of tasks in which all methods run
MODERATE, LEAST_HARM = "moderate", "least_harm"

Job = tuple[str, float, str, int]  # method, its knob or ratio, order, seed


class Plan(StudyPlan):
    """Terms of the experiment; the hash of the preregistration covers every field.

    Attributes:
        world: fingerprint of the continual world.
        confirmatory, exploratory: seeds; everything was chosen on the exploratory seeds alone.
        ratio: share of a batch that selection trains on; `ratios`: those that are tried for the
            methods in `swept`.
        orders: the tasks in each order, by name; all methods run in `given`.
        reordered: methods that run in the other orders too.
        every: longest gap between two probe evaluations of the guards' monitor, in steps.
        coordinates: k of the TopK cosine.
        audited: steps of each stage at which the plain run's rows are audited.
        tolerance: largest difference of task accuracies that counts as equal.
        learned: share of the plain run's accuracy below which a knob is discounted in the search.
        knobs: value of each guard's one main parameter; empty before the search.
        controlled, draws: methods of the stage `--controls`, and its orders of the batches.
        least: smallest difference of attack success that it calls an effect.
    """

    world: str
    confirmatory: tuple[int, ...]
    exploratory: tuple[int, ...]
    ratio: float = Field(gt=0, le=1)
    ratios: tuple[float, ...]
    swept: tuple[str, ...]
    orders: dict[str, tuple[str, ...]]
    reordered: tuple[str, ...]
    every: int = Field(ge=1)
    coordinates: int = Field(ge=1)
    audited: tuple[int, ...]
    tolerance: float = Field(ge=0)
    learned: float = Field(gt=0, le=1)
    knobs: dict[str, float] = Field(default_factory=dict)
    controlled: tuple[str, ...]
    draws: tuple[int, ...]
    least: float = Field(gt=0)

    @classmethod
    def of(cls, preregistration: Preregistration) -> Self:
        """Return the plan inside a preregistration; see `StudyPlan.of`.

        Raises:
            PreregistrationError: also if there is no given order.
        """
        plan = super().of(preregistration)
        if GIVEN not in plan.orders:
            raise PreregistrationError(f"orders has no {GIVEN!r}, in which all methods run")
        return plan

    def value(self, method: str) -> float:
        """Return the knob or ratio of a method in the main comparison."""
        if method in GUARDS:
            return self.knobs[method]
        return 1.0 if method == PLAIN else self.ratio

    def jobs(self) -> list[Job]:
        """Return every run of the confirmatory seeds: methods, then ratios, then orders."""
        every: list[Job] = []
        for seed in self.confirmatory:
            every += [(method, self.value(method), GIVEN, seed) for method in METHODS]
            every += [(m, ratio, GIVEN, seed) for m in self.swept for ratio in self.ratios]
            cells = product(self.orders, self.reordered)
            every += [(method, self.value(method), order, seed) for order, method in cells]
        return list(dict.fromkeys(every))
