"""What the continual study runs, as its frozen protocol says."""

from __future__ import annotations

from pydantic import Field

from experiments.continual.methods import GUARDS, METHODS, PLAIN
from experiments.harness.preregistration import Preregistration, PreregistrationError
from riprap._config import StrictModel

GIVEN = "given"  # the order of tasks in which all methods run
MODERATE, LEAST_HARM = "moderate", "least_harm"

Job = tuple[str, float, str, int]  # method, its knob or ratio, order, seed


class Plan(StrictModel):
    """The terms of the study; every field is covered by the protocol's hash.

    Attributes:
        world: fingerprint of the continual world.
        confirmatory, exploratory: seeds; everything was chosen on the exploratory ones alone.
        ratio: share of a batch that selection trains on; `ratios`: those that are tried for the
            methods in `swept`.
        orders: the tasks in each order, by name; `given` is the one in which all methods run.
        reordered: methods that run in the other orders too.
        every: the longest gap between two visits of the guards' monitor, in steps.
        coordinates: k of the TopK cosine.
        audited: steps of each stage at which the plain run's rows are looked at.
        tolerance: by how much task accuracy may differ and still count as equal.
        learned: share of the plain run's accuracy below which a knob is marked down in the search.
        knobs: the value chosen for each guard's one main knob; empty before the search.
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

    @classmethod
    def of(cls, preregistration: Preregistration) -> Plan:
        """The plan inside a protocol.

        Raises:
            ProtocolError: the protocol has none, exploratory and confirmatory seeds meet, or there
                is no given order.
        """
        plan = cls.parse(
            preregistration.study, f"protocol {preregistration.name!r}, study", PreregistrationError
        )
        if meeting := set(plan.exploratory) & set(plan.confirmatory):
            raise PreregistrationError(
                f"seeds {sorted(meeting)} are both exploratory and confirmatory"
            )
        if GIVEN not in plan.orders:
            raise PreregistrationError(f"orders has no {GIVEN!r}, in which all methods run")
        return plan

    def value(self, method: str) -> float:
        """The knob or ratio of a method in the main comparison."""
        if method in GUARDS:
            return self.knobs[method]
        return 1.0 if method == PLAIN else self.ratio

    def jobs(self) -> list[Job]:
        """Every run of the confirmatory seeds: methods, then ratios, then orders."""
        every: list[Job] = []
        for seed in self.confirmatory:
            every += [(method, self.value(method), GIVEN, seed) for method in METHODS]
            every += [(m, ratio, GIVEN, seed) for m in self.swept for ratio in self.ratios]
            every += [
                (method, self.value(method), order, seed)
                for order in self.orders
                for method in self.reordered
            ]
        return list(dict.fromkeys(every))
