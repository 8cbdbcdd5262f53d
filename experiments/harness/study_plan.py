"""What the plan of every study with two kinds of seeds is made of."""

from __future__ import annotations

from typing import Self

from experiments.harness.preregistration import Preregistration, PreregistrationError
from riprap._config import StrictModel


class StudyPlan(StrictModel):
    """The terms of a study, inside its protocol and covered by the protocol's hash.

    Attributes:
        exploratory: seeds on which everything is chosen; confirmatory: seeds that are reported.
    """

    exploratory: tuple[int, ...]
    confirmatory: tuple[int, ...]

    @classmethod
    def of(cls, preregistration: Preregistration) -> Self:
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
