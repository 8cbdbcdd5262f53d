"""Update projection: correct the optimizer's update instead of the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from riprap.guards.projection._dual_qp import solve_dual
from riprap.guards.projection._gradient_surgery import ConflictStats, GradientSurgery


@dataclass
class UpdateProjection(GradientSurgery):
    """After the step: Δθ ← the nearest update with ⟨h_b, Δθ⟩ ≥ −tolerance for every b.

    Momentum, preconditioning and weight decay can turn a corrected gradient back into a conflict;
    a constraint on the update holds for every optimizer. The optimizer's state is unchanged, so a
    momentum against a behavior is corrected again at each step.

    Ours: GEM's problem (1706.08840, eq. 11, memory strength 0) applied to the update.

    Args:
        tolerance: decrease of a mean margin that one step may cause, to first order, in the
            margin's unit (with of="loss": increase of a mean loss).

    Raises:
        ConfigError: the tolerance is negative.
    """

    tolerance: float = 0.0

    name: ClassVar[str] = "update_projection"
    acts_on_update: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tolerance >= 0:
            raise self._error(f"tolerance={self.tolerance}; it must be 0 or more")

    def decide(self, conflict: ConflictStats) -> tuple[float, np.ndarray]:
        """Return the weights of the shortest correction with every product ≥ −tolerance."""
        return 1.0, solve_dual(conflict.gram, -self.tolerance - conflict.products)
