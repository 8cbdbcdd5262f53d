"""L2-SP: pull all weights toward their initial values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from riprap.guards._base import GuardView
from riprap.guards.regularization._penalty import MAX_PULL, Penalty
from riprap.linalg import Vector, clone, norm, subtract


@dataclass
class L2SP(Penalty):
    """Penalty λ/2 ‖θ − θ₀‖².

    Source: Li et al., 1802.01483, eq. 3. Variant: the pull has a longest length (`max_pull`);
    and new parameters (a fresh head) are pulled to their initial values, not to 0.
    """

    strength: float = 0.1
    max_pull: float | None = field(default=MAX_PULL, kw_only=True)
    anchor: Vector = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "l2_sp"
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "1802.01483"
    fidelity: ClassVar[str] = "variant"
    goal: ClassVar[str] = "the initial weights"
    state_attrs: ClassVar[tuple[str, ...]] = ("anchor",)

    def start(self, view: GuardView) -> None:
        """Store θ₀."""
        super().start(view)
        self.anchor = clone(view.parameters)

    def extend(self, view: GuardView, joined: Sequence[int]) -> None:
        """Store θ₀ of the parameters that join: their values until now."""
        for index in joined:
            self.anchor.insert(index, view.parameters[index].detach().clone())

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Compute ½‖θ − θ₀‖² and θ − θ₀."""
        shift = subtract(view.parameters, self.anchor)
        return 0.5 * float(norm(shift)) ** 2, shift
