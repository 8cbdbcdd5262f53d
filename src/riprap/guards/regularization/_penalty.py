"""Base classes of penalties: add the gradient of a regularization term to the task gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from riprap._distributed import warn_once
from riprap.guards._base import Guard, GuardView, Proposal
from riprap.linalg import Vector, add, as_sharded, dot, norm, subtract, to_local

# `max_pull` of penalties on weights: an anchor that is too strong would stop the task, or diverge.
# Most of a gradient is noise, which averages out, and a pull does not: so much less than it.
MAX_PULL = 0.1
# A pull that was never longer than FAINT of the gradient at so many steps changes next to nothing.
FAINT, FAINT_STEPS = 1e-3, 100


@dataclass
class Penalty(Guard):
    """Base of guards that add strength · ∇R to the gradient, once a step of the optimizer.

    The penalty is added after the trainer's clipping. To clip the sum, put `Clip` after the penalty
    in a `Chain`.

    Args:
        strength: the factor λ of the penalty R.
        max_pull: the longest λ∇R, as a share of the gradient's length; None: any length, as in the
            papers. Below 1 a step still goes down the loss of its batch.

    Raises:
        ConfigError: the strength, or `max_pull`, is not above 0.
    """

    strength: float = 1.0
    max_pull: float | None = field(default=None, kw_only=True)
    strongest_pull: float = field(default=0.0, init=False, repr=False)
    pull_count: int = field(default=0, init=False, repr=False)

    may_increase_norm: ClassVar[bool] = True
    goal: ClassVar[str] = "the minimum of the penalty"  # for the text of actions

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise self._error(f"strength={self.strength}; it must be above 0")
        if self.max_pull is not None and not self.max_pull > 0:
            raise self._error(f"max_pull={self.max_pull}; it must be above 0, or None")

    def start(self, view: GuardView) -> None:
        """Forget the pulls of an earlier watch."""
        self.strongest_pull, self.pull_count = 0.0, 0

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Compute R and this rank's part of ∇R (None if 0), without the strength."""
        raise NotImplementedError

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Add the penalty's gradient."""
        value, gradient = self.penalty(view)
        if gradient is None:
            return Proposal(detail="nothing to do: the penalty is 0", before={"penalty": value})
        size = float(norm(view.vector))
        pull = self.strength * float(norm(as_sharded(gradient, view.vector)))
        share = 1.0
        if self.max_pull is not None and pull > self.max_pull * size:
            share = self.max_pull * size / pull
        factor = self.strength * share
        vector = as_sharded(add(view.vector, gradient, factor), view.vector)
        before, after = {"penalty": value, "norm": size}, {"norm": float(norm(vector))}
        if not math.isfinite(value + after["norm"]):
            cause = "penalty" if math.isfinite(size) else "gradient"
            return Proposal(detail=f"nothing was done: the {cause} is not finite", before=before)
        detail = f"added a pull toward {self.goal} (penalty {self.strength * value:.3g})"
        if share < 1:
            detail += f", shortened to {self.max_pull:.0%} of the gradient's length"
        if size > 0:  # else nothing is known of the pull's share
            self._note_pull(share * pull / size)
        return Proposal(vector, detail, before, after)

    def _note_pull(self, share: float) -> None:
        """Warn once if the pull was never more than a faint share of the gradient's length."""
        self.strongest_pull, self.pull_count = max(self.strongest_pull, share), self.pull_count + 1
        if self.pull_count == FAINT_STEPS and self.strongest_pull < FAINT:
            warn_once(
                f"guard {self.label}: the pull toward {self.goal} was at most "
                f"{self.strongest_pull:.1e} of the gradient's length at {FAINT_STEPS} steps: it "
                f"changes next to nothing; give a larger strength than {self.strength:g}, or "
                "another guard, such as KL or replay"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the guard's state and the strength of its pull so far."""
        return {**super().state_dict(), "pull": (self.strongest_pull, self.pull_count)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict({k: v for k, v in state.items() if k != "pull"})
        self.strongest_pull, self.pull_count = state.get("pull", (0.0, 0))


def quadratic_penalty(
    factor: float, importance: Sequence[Tensor], parameters: Sequence[Tensor], anchor: Vector
) -> tuple[float, Vector]:
    """Compute R = factor · Σ Ω (θ − θ*)² and its gradient 2 · factor · Ω (θ − θ*), with Ω constant.

    Args:
        importance: Ω, one tensor a parameter; for sharded parameters this rank's part.
    """
    shift = subtract(parameters, anchor)
    weighted = torch._foreach_mul([*map(to_local, shift)], [*map(to_local, importance)])
    value = factor * float(dot(shift, as_sharded(weighted, shift)))
    return value, list(torch._foreach_mul(weighted, 2 * factor))
