"""Base classes of penalties: add the gradient of a regularization term to the task gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from riprap.guards._base import Guard, GuardView, Proposal
from riprap.linalg import Vector, add, as_sharded, dot, norm, subtract, to_local


@dataclass
class Penalty(Guard):
    """Base of guards that add strength · ∇R to the gradient, once a step of the optimizer.

    The penalty is added after the trainer's clipping. To clip the sum, put `Clip` after the penalty
    in a `Chain`.

    Args:
        strength: the factor λ of the penalty R.

    Raises:
        ConfigError: the strength is not above 0.
    """

    strength: float = 1.0

    may_increase_norm: ClassVar[bool] = True
    goal: ClassVar[str] = "the minimum of the penalty"  # for the text of actions

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise self._error(f"strength={self.strength}; it must be above 0")

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Compute R and this rank's part of ∇R (None if 0), without the strength."""
        raise NotImplementedError

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Add the penalty's gradient."""
        value, gradient = self.penalty(view)
        if gradient is None:
            return Proposal(detail="nothing to do: the penalty is 0", before={"penalty": value})
        size = float(norm(view.vector))
        vector = as_sharded(add(view.vector, gradient, self.strength), view.vector)
        before, after = {"penalty": value, "norm": size}, {"norm": float(norm(vector))}
        if not math.isfinite(value + after["norm"]):
            cause = "penalty" if math.isfinite(size) else "gradient"
            return Proposal(detail=f"nothing was done: the {cause} is not finite", before=before)
        detail = f"added a pull toward {self.goal} (penalty {self.strength * value:.3g})"
        return Proposal(vector, detail, before, after)


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
