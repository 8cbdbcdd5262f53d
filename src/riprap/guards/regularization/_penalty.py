"""Penalties: a gradient of one's own is added to the task's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from riprap.behaviors import Behavior
from riprap.errors import ConfigError
from riprap.guards._base import Guard, GuardView, Proposal, behavior_names
from riprap.linalg import Vector, add, dot, to_local, norm, as_sharded, subtract


@dataclass
class Penalty(Guard):
    """A guard that adds strength · ∇R to the gradient, once a step of the optimizer.

    It is added after whatever clipping the trainer does: to clip the sum, put `Clip` behind it in a
    `Chain`.

    Args:
        strength: the factor λ of the penalty R.

    Raises:
        ConfigError: the strength is not above 0.
    """

    strength: float = 1.0

    may_increase_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise ConfigError(f"guard {self.name}: strength={self.strength}; it must be above 0")

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """R and ∇R at the parameters as they are, without the strength.

        Returns:
            (R, ∇R as this rank holds it; None where there is nothing to add).
        """
        raise NotImplementedError

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Add the penalty's gradient."""
        value, gradient = self.penalty(view)
        if gradient is None:
            return Proposal(detail="no penalty", before={"penalty": value})
        size = float(norm(view.vector))
        vector = as_sharded(add(view.vector, gradient, self.strength), view.vector)
        before, after = {"penalty": value, "norm": size}, {"norm": float(norm(vector))}
        if not math.isfinite(value + after["norm"]):
            why = (
                "the gradient is not finite" if not math.isfinite(size) else "the penalty diverged"
            )
            return Proposal(detail=f"{why}: nothing is added", before=before)
        return Proposal(vector, f"penalty {self.strength * value:.3g}", before, after)


@dataclass
class BehaviorGuard(Guard):
    """A guard that reads the probes of some behaviours itself.

    Args:
        behaviors: what to protect, by behaviour or by name; None: all that are watched.
    """

    behaviors: Sequence[Behavior | str] | None = None
    names: list[str] = field(default_factory=list, init=False, repr=False)

    def select_behaviors(self, view: GuardView) -> list[Behavior]:
        """The behaviours that it protects; their names are kept.

        Raises:
            ConfigError: one of them is not watched.
        """
        self.names = behavior_names(self.name, self.behaviors, view.behaviors)
        return [view.behaviors[name] for name in self.names]


def quadratic_penalty(
    factor: float, importance: Sequence[Tensor], parameters: Sequence[Tensor], anchor: Vector
) -> tuple[float, Vector]:
    """R = factor · Σ Ω (θ − θ*)² and its gradient 2 · factor · Ω (θ − θ*), Ω held fixed.

    Args:
        importance: Ω, one tensor a parameter; of sharded parameters this rank's part.
    """
    away = subtract(parameters, anchor)
    pull = torch._foreach_mul([to_local(part) for part in away], [to_local(one) for one in importance])
    value = factor * float(dot(away, as_sharded(pull, away)))
    return value, list(torch._foreach_mul(pull, 2 * factor))


def sum_vectors(vectors: Sequence[Vector]) -> Vector:
    """The sum of vectors, at least one, as new tensors."""
    found = [part.clone() for part in vectors[0]]
    for vector in vectors[1:]:
        torch._foreach_add_(found, vector)
    return found
