"""EWC: anchor each weight in proportion to its Fisher information on the behaviors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from riprap.guards._base import BehaviorGuard, GuardView
from riprap.guards.regularization._penalty import MAX_PULL, Penalty, quadratic_penalty
from riprap.linalg import Vector, clone, sum_vectors


@dataclass
class EWC(Penalty, BehaviorGuard):
    """Penalty λ/2 Σ_i F_i (θ_i − θ*_i)², with F the diagonal Fisher of the behaviors at θ* = θ₀.

    F is the mean over a behavior's probes of the squared gradient of each probe's loss, summed over
    behaviors, as the paper sums the penalties of earlier tasks. If the model is certain of its
    answers, F is nearly 0: EWC protects almost nothing, or λ must be very large (10³ to 10⁶).
    `of="margin"` uses the gradients of the margins, which stay large.

    Args:
        of: "loss", as in the paper, or "margin", a variant.

    Source: Kirkpatrick et al., 1612.00796, eq. 3. Variant: the pull has a longest length
    (`max_pull`), and the Fisher is empirical, at the probes' answers, not over the model's own.

    Raises:
        ConfigError: `of` is neither; in `start`, a behavior has no losses (or margins) that reach
            a trained parameter.
        BehaviorError: in `start`, the model is sharded over ranks.
    """

    of: str = "loss"
    max_pull: float | None = field(default=MAX_PULL, kw_only=True)
    fisher: Vector = field(default_factory=list, init=False, repr=False)
    anchor: Vector = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "ewc"
    goal: ClassVar[str] = "the initial weights that matter to the behaviors"
    per_parameter: ClassVar[bool] = True
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "1612.00796"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = ("fisher", "anchor")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of not in ("loss", "margin"):
            raise self._error(f"of={self.of!r}; choose 'loss' or 'margin'")

    def start(self, view: GuardView) -> None:
        """Estimate F and store θ*."""
        super().start(view)
        self.fisher, self.anchor = self.estimate_fisher(view), clone(view.parameters)
        self.warn_of_unprotected(view, self.fisher)

    def estimate_fisher(self, view: GuardView) -> Vector:
        """Estimate F at the current parameters."""
        self.select_behaviors(view)
        return sum_vectors(list(self.finite_fishers(view, self.of).values()))

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Compute ½ Σ F (θ − θ*)² and F (θ − θ*)."""
        return quadratic_penalty(0.5, self.fisher, view.parameters, self.anchor)


@dataclass
class OnlineEWC(EWC):
    """EWC with one running F: a consolidation sets F ← γF + F_new and θ* ← θ.

    Consolidate between two tasks: call `consolidate()`, which takes effect before the next step of
    this run or of another run with the same guard; or set `every`. What was lost before a
    consolidation is not recovered, because θ* is then no longer θ₀.

    Args:
        gamma: share of the old F that remains, 0 to 1.
        every: steps between consolidations; None: only when `consolidate` is called.

    Source: Schwarz et al., 1805.06370 (online EWC). Variant: as `EWC`; and the old F
    is discounted when the new one is added, not when it is used, a difference of a factor γ in λ.

    Raises:
        ConfigError: `gamma` or `every` is out of range; see also `EWC`.
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
            raise self._error(
                f"gamma={self.gamma}, every={self.every}; gamma must lie between 0 and 1, and "
                "every must be a number of steps or None"
            )

    def consolidate(self) -> None:
        """Request a new F and θ* before the next step."""
        self.consolidation_due = True

    def start(self, view: GuardView) -> None:
        """Estimate F and store θ*, or update those of an earlier run that was consolidated."""
        if self.consolidation_due and len(self.fisher) == len(view.parameters):
            Penalty.start(self, view)
            self._consolidate_now(view)
        else:
            super().start(view)

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Consolidate if it is due, then compute EWC's penalty."""
        done = view.step - 1
        scheduled = self.every is not None and done > 0 and done % self.every == 0
        if self.consolidation_due or scheduled:
            self._consolidate_now(view)
        return super().penalty(view)

    def _consolidate_now(self, view: GuardView) -> None:
        torch._foreach_mul_(self.fisher, self.gamma)
        self.fisher = sum_vectors([self.fisher, self.estimate_fisher(view)])
        self.anchor, self.consolidation_due = clone(view.parameters), False
