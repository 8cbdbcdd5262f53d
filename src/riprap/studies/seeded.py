"""What the plan of every study with two kinds of seeds is made of."""

from __future__ import annotations

from typing import Self

from riprap.detectors import Protocol
from riprap.evidence import ProtocolError
from riprap.schema import Strict


class Seeded(Strict):
    """The terms of a study, inside its protocol and covered by the protocol's hash.

    Attributes:
        exploratory: seeds on which everything is chosen; confirmatory: seeds that are reported.
    """

    exploratory: tuple[int, ...]
    confirmatory: tuple[int, ...]

    @classmethod
    def of(cls, protocol: Protocol) -> Self:
        """The plan inside a protocol.

        Raises:
            ProtocolError: the protocol has none, or exploratory and confirmatory seeds meet.
        """
        plan = cls.parse(protocol.study, f"protocol {protocol.name!r}, study", ProtocolError)
        if meeting := set(plan.exploratory) & set(plan.confirmatory):
            raise ProtocolError(f"seeds {sorted(meeting)} are both exploratory and confirmatory")
        return plan
