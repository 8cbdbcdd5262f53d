"""What the depth study runs, as its frozen protocol says."""

from __future__ import annotations

from pydantic import Field

from experiments.harness.preregistration import Preregistration, PreregistrationError
from riprap._config import StrictModel


class Degree(StrictModel):
    """How B was installed, beside the other old tasks.

    Attributes:
        steps: of training; `decay`: its weight decay; `share`: of B in each batch.
    """

    steps: int = Field(ge=1)
    decay: float = Field(ge=0)
    share: float = Field(gt=0, lt=1)

    @property
    def name(self) -> str:
        """A folder's name."""
        return f"{self.steps}-{self.decay:g}-{self.share:g}"


class Plan(StrictModel):
    """The terms of the study; every field is covered by the protocol's hash.

    Attributes:
        world: fingerprint of the toy world, but for how B was installed.
        degrees: how B is installed.
        condition: the new task that washes B away; `steps`: for how long.
        every: the monitor's longest gap between visits.
        confirmatory, exploratory: seeds.
        window_from: the level whose first alert opens the detection window; the break closes it.
    """

    world: str
    degrees: tuple[Degree, ...] = Field(min_length=6)
    condition: str
    steps: int
    every: int
    confirmatory: tuple[int, ...]
    exploratory: tuple[int, ...]
    window_from: str

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

    def runs(self, exploratory: bool) -> list[tuple[Degree, int]]:
        """Every (degree, seed)."""
        seeds = self.exploratory if exploratory else self.confirmatory
        return [(degree, seed) for seed in seeds for degree in self.degrees]
