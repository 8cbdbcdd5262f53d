"""The base class of every experiment's plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from experiments.harness.preregistration import Preregistration, PreregistrationError
from riprap._config import StrictModel


class StudyPlan(StrictModel):
    """The terms of an experiment, inside its preregistration and covered by its hash.

    A plan declares `exploratory` and `confirmatory` itself, since the order of its fields is part
    of the hash that names its cached runs.

    Attributes:
        exploratory: seeds on which everything is chosen.
        confirmatory: seeds whose results are reported.
    """

    if TYPE_CHECKING:
        exploratory: tuple[int, ...]
        confirmatory: tuple[int, ...]

    @classmethod
    def of(cls, preregistration: Preregistration) -> Self:
        """Return the plan inside a preregistration.

        Raises:
            PreregistrationError: there is none, or exploratory and confirmatory seeds overlap.
        """
        where = f"preregistration {preregistration.name!r}, study"
        plan = cls.parse(preregistration.study, where, PreregistrationError)
        if shared := set(plan.exploratory) & set(plan.reported_seeds()):
            raise PreregistrationError(
                f"seeds {sorted(shared)} are both exploratory and confirmatory"
            )
        return plan

    @property
    def terms(self) -> str:
        """Return the hash of all terms, which names cached runs."""
        return self.config_hash()

    def seeds(self, exploratory: bool) -> tuple[int, ...]:
        """Return the seeds of one kind."""
        return self.exploratory if exploratory else self.confirmatory

    def reported_seeds(self) -> tuple[int, ...]:
        """Return all seeds whose results are reported."""
        return self.confirmatory


def require_world(expected: str, found: str) -> None:
    """Check that a plan was made for a world, by its fingerprint.

    Raises:
        PreregistrationError: the fingerprints differ.
    """
    if expected != found:
        raise PreregistrationError(
            f"the plan was made for world {expected[:12]}…, this one is {found[:12]}…: amend the "
            "preregistration and give a reason"
        )
