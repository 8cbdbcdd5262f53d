"""EWC: weights that a behaviour depends on are held, each by its Fisher information."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from riprap.errors import ConfigError
from riprap.evaluation import fisher_diagonal
from riprap.guards._base import GuardView
from riprap.guards.regularization._penalty import BehaviorGuard, Penalty, quadratic_penalty, sum_vectors
from riprap.linalg import Vector, clone


@dataclass
class EWC(Penalty, BehaviorGuard):
    """Adds λ/2 Σ_i F_i (θ_i − θ*_i)², F the diagonal Fisher of the behaviours at θ* = θ₀.

    F is the mean over a behaviour's probes of the squared gradient of each one's loss, summed over
    behaviours, as the paper adds up the penalties of earlier tasks. Where the model is sure of its
    answers F is nearly 0, and EWC holds next to nothing, or λ must be very large (10³ to 10⁶):
    `of="margin"` takes the gradients of the margins, which stay large there.

    Args:
        of: "loss", as the paper has it, or "margin", a variant.

    Source: Kirkpatrick et al., 1612.00796, eq. 3. Simplified: the empirical Fisher, at the probes'
    own answers, in place of an expectation over the model's.

    Raises:
        ConfigError: `of` is neither, or (at the start) a behaviour has none of these, or none that
            reach a trained parameter.
        BehaviorError: (at the start) the model is sharded over ranks.
    """

    of: str = "loss"
    fisher: Vector = field(default_factory=list, init=False, repr=False)
    anchor: Vector = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "ewc"
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "1612.00796"
    fidelity: ClassVar[str] = "simplified"
    state_attrs: ClassVar[tuple[str, ...]] = ("fisher", "anchor")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of not in ("loss", "margin"):
            raise ConfigError(f"guard {self.name}: of={self.of!r}; choose 'loss' or 'margin'")

    def start(self, view: GuardView) -> None:
        """Take F and θ*."""
        self.fisher, self.anchor = self.estimate_fisher(view), clone(view.parameters)

    def estimate_fisher(self, view: GuardView) -> Vector:
        """F at the parameters as they are."""
        found = []
        for behavior in self.select_behaviors(view):
            own = fisher_diagonal(behavior, view.model, view.parameters, self.of)
            if own is None:
                what = "losses" if self.of == "loss" else "margins"
                raise ConfigError(
                    f"guard {self.name}: behaviour {behavior.name!r} has no {what} that reach a "
                    "trained parameter; give Behavior(losses=...), or of='margin'"
                )
            found.append(own)
        return sum_vectors(found)

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """½ Σ F (θ − θ*)² and F (θ − θ*)."""
        return quadratic_penalty(0.5, self.fisher, view.parameters, self.anchor)


@dataclass
class OnlineEWC(EWC):
    """EWC with one running F: at each consolidation F ← γF + F_new, and θ* moves to where θ is.

    Consolidate where one task ends and the next begins: call `consolidate()`, which takes effect
    before the next step, be it of this run or of another under the same guard; or give `every`.
    A consolidation lets go of all that was lost before it: θ* is then no longer the start.

    Args:
        gamma: how much of the old F stays, 0 to 1.
        every: consolidate after each so many steps; None: only when told.

    Source: Schwarz et al., 1805.06370 (online EWC). Simplified: the empirical Fisher, and the old F
    is discounted when it is added to, not when it is used, which differs by one factor γ of λ.

    Raises:
        ConfigError: `gamma` or `every` are out of range; see also `EWC`.
    """

    gamma: float = 0.9
    every: int | None = None
    consolidation_due: bool = field(default=False, init=False, repr=False)

    name: ClassVar[str] = "online_ewc"
    source: ClassVar[str] = "1805.06370"
    state_attrs: ClassVar[tuple[str, ...]] = ("fisher", "anchor", "consolidation_due")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma <= 1 or (self.every is not None and self.every < 1):
            raise ConfigError(
                f"guard {self.name}: gamma={self.gamma}, every={self.every}; gamma lies between 0 "
                "and 1, every is a number of steps or None"
            )

    def consolidate(self) -> None:
        """Take F afresh and move θ*, before the next step."""
        self.consolidation_due = True

    def start(self, view: GuardView) -> None:
        """Take F and θ*, or add to those of an earlier run that was consolidated."""
        if self.consolidation_due and len(self.fisher) == len(view.parameters):
            self._consolidate_now(view)
        else:
            super().start(view)

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """As EWC's, after the consolidation if one is due."""
        taken = view.step - 1
        if self.consolidation_due or (self.every is not None and taken > 0 and taken % self.every == 0):
            self._consolidate_now(view)
        return super().penalty(view)

    def _consolidate_now(self, view: GuardView) -> None:
        torch._foreach_mul_(self.fisher, self.gamma)
        self.fisher = sum_vectors([self.fisher, self.estimate_fisher(view)])
        self.anchor, self.consolidation_due = clone(view.parameters), False
