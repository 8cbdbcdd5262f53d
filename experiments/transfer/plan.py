"""What the transfer study runs, as its frozen protocol says."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.preregistration import Preregistration, PreregistrationError
from riprap._config import StrictModel

PLAIN = "plain"


class Front(StrictModel):
    """How the Keeper is compared at equal time.

    Attributes:
        steps: length of the plain run, whose processor time is the unit.
        budgets: times at which everything is measured, in that unit.
        seeds: confirmatory ones, used for nothing else.
        guards: whom it is compared with, beside the plain run, at their chosen knobs.
        kept: the score that each behaviour must have at a budget, and the share of the plain run's
            new-task accuracy that must be reached, for the Keeper to pass.
    """

    steps: int = Field(ge=1)
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    guards: tuple[str, ...]
    kept: float = Field(gt=0, le=1)


class Plan(StrictModel):
    """The terms of the study; every field is covered by the protocol's hash.

    Attributes:
        world: fingerprint of the world with facts.
        tasks: the new tasks; `steps`: how long each run trains on one.
        every: the monitor's longest gap between visits.
        confirmatory, exploratory: seeds; knobs are chosen on the exploratory ones alone.
        knobs: the value chosen for each guard's one main knob, by guard; empty before the search.
        learned: share of the plain run's new-task accuracy below which a knob's value is marked
            down in the search.
    """

    world: str
    tasks: tuple[str, ...]
    steps: int = Field(ge=1)
    every: int = Field(ge=1)
    confirmatory: tuple[int, ...]
    exploratory: tuple[int, ...]
    knobs: dict[str, float] = Field(default_factory=dict)
    learned: float = Field(default=0.95, gt=0, le=1)
    front: Front

    @classmethod
    def of(cls, preregistration: Preregistration) -> Plan:
        """The plan inside a protocol.

        Raises:
            ProtocolError: the protocol has none, or exploratory and confirmatory seeds meet.
        """
        plan = cls.parse(
            preregistration.study, f"protocol {preregistration.name!r}, study", PreregistrationError
        )
        if meeting := set(plan.exploratory) & set(plan.confirmatory):
            raise PreregistrationError(
                f"seeds {sorted(meeting)} are both exploratory and confirmatory"
            )
        return plan
