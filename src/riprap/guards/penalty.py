"""Penalties: a gradient of one's own is added to the task's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from riprap.evidence import ConfigError
from riprap.guards.base import Guard, GuardView, Proposal
from riprap.tensors import Vector, add, norm, sharded_like


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

    grows: ClassVar[bool] = True

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
        vector = sharded_like(add(view.vector, gradient, self.strength), view.vector)
        before, after = {"penalty": value, "norm": size}, {"norm": float(norm(vector))}
        return Proposal(vector, f"penalty {self.strength * value:.3g}", before, after)
