"""What the detectors study runs and resamples, as its frozen protocol says."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.preregistration import Preregistration, PreregistrationError
from riprap._config import StrictModel
from riprap.detectors import AnyDetector

NULL = "null"


class Plan(StrictModel):
    """The terms of the study; every field is covered by the protocol's hash.

    Attributes:
        world: fingerprint of the toy world.
        steps: length of each real run, in optimizer steps.
        every: the monitor's longest gap between visits.
        conditions: the new tasks of the real runs.
        confirmatory: seeds of the new tasks; `null_seeds`: those of `null`.
        exploratory: seeds on which everything was chosen, disjoint from the others.
        bootstraps: resampled null runs.
        planted: resampled runs for each shape and size of a planted decline.
        onset: step at which a planted decline begins; `span`: steps it takes (linear), its time
            constant (exponential) or its period (oscillating).
        sizes: depth of the planted declines, as shares of the start's mean margin.
        spread: standard deviation, over probes, of the logarithm of a decline's depth.
        rivals: detectors judged beside those of the protocol.
    """

    world: str
    steps: int = Field(ge=1)
    every: int = Field(ge=1)
    conditions: tuple[str, ...]
    confirmatory: tuple[int, ...]
    null_seeds: tuple[int, ...]
    exploratory: tuple[int, ...]
    bootstraps: int = Field(ge=1)
    planted: int = Field(ge=1)
    onset: int
    span: int
    sizes: tuple[float, ...]
    spread: float
    rivals: tuple[AnyDetector, ...]

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

    def runs(self) -> list[tuple[str, int]]:
        """Every (condition, seed) of the real runs."""
        new = [(c, s) for s in self.confirmatory for c in self.conditions]
        return new + [(NULL, s) for s in self.null_seeds]
