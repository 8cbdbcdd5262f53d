"""Update projection: what the optimizer made of the gradient is corrected, not the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from riprap.errors import ConfigError
from riprap.guards.projection._dual_qp import solve_dual
from riprap.guards.projection._gradient_surgery import ConflictStats, GradientSurgery


@dataclass
class UpdateProjection(GradientSurgery):
    """After the step: Δθ ← the nearest update with ⟨h_b, Δθ⟩ ≥ −tolerance for every b.

    Momentum, a preconditioner and decay bend a corrected gradient back; what is asked of the update
    itself holds whatever the optimizer is. The optimizer's own state stays as it was, so that a
    momentum that points against a behaviour is met again at each step.

    Ours: GEM's problem (1706.08840, eq. 11, memory strength 0) put to the update; no paper's name
    is claimed for it.

    Args:
        tolerance: by how much a step may lower a mean margin, to first order, in the margin's unit
            (of="loss": raise a mean loss).

    Raises:
        ConfigError: the tolerance is under 0.
    """

    tolerance: float = 0.0

    name: ClassVar[str] = "update_projection"
    fidelity: ClassVar[str] = "variant"
    acts_on_update: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tolerance >= 0:
            raise ConfigError(
                f"guard update_projection: tolerance={self.tolerance}; it may not be under 0"
            )

    def decide(self, conflict: ConflictStats) -> tuple[float, np.ndarray]:
        """The shortest correction that brings every product to −tolerance or above."""
        return 1.0, solve_dual(conflict.gram, -self.tolerance - conflict.products)
