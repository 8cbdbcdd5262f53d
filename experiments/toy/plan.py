"""What the toy study runs, as its frozen protocol says."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.preregistration import Preregistration, PreregistrationError
from riprap._config import StrictModel

NULL = "null"


class Plan(StrictModel):
    """The terms of the study; every field is covered by the protocol's hash.

    Attributes:
        world: fingerprint of the toy world.
        steps: length of each run, in optimizer steps.
        every: the monitor's longest gap between visits.
        conditions: the new tasks; `null` goes on with the old mix.
        confirmatory: seeds of every condition; `null_seeds`: those of `null`.
        exploratory: seeds on which everything above was chosen, disjoint from the others.
        claim_steps: first steps in which predicted and realised change are compared.
        ages: how stale, in steps, h_b is made on purpose in that comparison.
        trivial_check: "alert at this check unless the run is null".
        slope_speedup: visits that the slope row may make for each one of the forecast's.
        fixed: the fixed thresholds: signal, side and value.
    """

    world: str
    steps: int = Field(ge=1)
    every: int = Field(ge=1)
    conditions: tuple[str, ...]
    confirmatory: tuple[int, ...]
    null_seeds: tuple[int, ...]
    exploratory: tuple[int, ...]
    claim_steps: int
    ages: tuple[int, ...]
    trivial_check: int
    slope_speedup: int
    fixed: tuple[dict[str, str | float | int | bool], ...]

    @classmethod
    def of(cls, preregistration: Preregistration) -> Plan:
        """The plan inside a protocol.

        Raises:
            ProtocolError: the protocol has none, or exploratory and confirmatory seeds meet.
        """
        plan = cls.parse(
            preregistration.study, f"protocol {preregistration.name!r}, study", PreregistrationError
        )
        meeting = set(plan.exploratory) & (set(plan.confirmatory) | set(plan.null_seeds))
        if meeting:
            raise PreregistrationError(
                f"seeds {sorted(meeting)} are both exploratory and confirmatory"
            )
        return plan

    def runs(self, exploratory: bool) -> list[tuple[str, int]]:
        """Every (condition, seed) of the study."""
        if exploratory:
            return [(c, s) for s in self.exploratory for c in self.conditions]
        own = {c: self.null_seeds if c == NULL else self.confirmatory for c in self.conditions}
        pairs = [(c, s) for c, seeds in own.items() for s in seeds]
        return sorted(pairs, key=lambda pair: pair[1])
