"""What the steep study runs, as its frozen protocol says."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.preregistration import Preregistration, PreregistrationError
from riprap._config import StrictModel


class Plan(StrictModel):
    """The terms of the study; every field is covered by the protocol's hash.

    Attributes:
        world: fingerprint of the toy world.
        conditions: new tasks; `null` is the control, and has no part in the verdicts.
        steps, every: length of a run, and steps between two measurements.
        k, most: steep directions of a behaviour, and probes whose gradients are taken.
        draws: of each kind of unrelated margins.
        near_zero: both whole cosines must be smaller for a measurement to count.
        clearly: how many times chance an alignment must reach to be clearly above it.
        confirmatory, exploratory: seeds.
    """

    world: str
    conditions: tuple[str, ...]
    steps: int = Field(ge=1)
    every: int = Field(ge=1)
    k: int = Field(ge=1)
    most: int = Field(ge=1)
    draws: int = Field(ge=1)
    near_zero: float = Field(gt=0)
    clearly: float = Field(ge=1)
    confirmatory: tuple[int, ...] = Field(min_length=3)
    exploratory: tuple[int, ...]

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

    def runs(self, exploratory: bool) -> list[tuple[str, int]]:
        """Every (condition, seed)."""
        seeds = self.exploratory if exploratory else self.confirmatory
        return [(condition, seed) for seed in seeds for condition in self.conditions]
