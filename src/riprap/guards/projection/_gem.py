"""GEM: the nearest step that conflicts with no protected gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from riprap.guards.projection._dual_qp import solve_dual
from riprap.guards.projection._gradient_surgery import ConflictStats, NormalizedSurgery


@dataclass
class GEM(NormalizedSurgery):
    """If ⟨g, p_b⟩ < 0 for some b: g ← g + Σ v_b p_b with v from the dual problem.

    v solves min ½ vᵀ(P + ridge·I)v + qᵀv, v ≥ strength, with P_ab = ⟨p_a, p_b⟩ and q_b = ⟨g, p_b⟩.
    With strength and ridge 0 the result is the vector nearest to g with ⟨·, p_b⟩ ≥ 0 for all b; it
    is never longer than g. The strength turns the result toward the protected gradients; with
    one above 0, behaviors whose margin is not below its start are left out. The ridge leaves up to
    ridge/(1 + ridge) of a conflict.

    Source: Lopez-Paz and Ranzato, 1706.08840, eq. 11 and the authors' `project2cone2`. Simplified:
    p_b is computed at each refresh, over all probes. The paper's units of strength and ridge, and
    its gradients, are those of `of="loss", normalize=False`.

    Args:
        strength: memory strength γ, the minimum weight of each p_b once there is a conflict; in
            units of ‖g‖/‖p_b‖, unless `normalize` is False. The authors use 0.5 with losses.
        ridge: added to the diagonal of P; in units of ‖g‖², unless `normalize` is False.

    Raises:
        ConfigError: strength or ridge is negative.
    """

    strength: float = 0.0
    ridge: float = 1e-3

    name: ClassVar[str] = "gem"
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "1706.08840"
    fidelity: ClassVar[str] = "simplified"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.strength >= 0 and self.ridge >= 0):
            values = f"strength={self.strength}, ridge={self.ridge}"
            raise self._error(f"{values}; both must be 0 or more")

    @property
    def pulls(self) -> bool:
        """Whether the strength turns the result toward the protected gradients."""
        return self.strength > 0

    def combine(self, conflict: ConflictStats) -> tuple[float, np.ndarray]:
        """Return v, as the strength plus the remaining weight that the conflicts need."""
        n = len(conflict.products)
        unit = conflict.squared_norm if self.normalize else 1.0
        gram = conflict.gram + self.ridge * unit * np.eye(n)
        floor = np.full(n, self.strength)
        return 1.0, floor + solve_dual(gram, -conflict.products - gram @ floor)
