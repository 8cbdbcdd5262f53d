"""A-GEM: project the gradient so that it does not conflict with the mean protected gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from riprap.guards.projection._gradient_surgery import ConflictStats, GradientSurgery


@dataclass
class AGEM(GradientSurgery):
    """If ⟨g, p̄⟩ < 0: g ← g − (⟨g, p̄⟩ / ‖p̄‖²) p̄, with p̄ the mean protected gradient.

    Source: Chaudhry et al., 1812.00420, eq. 11. Simplified: p̄ is computed at each refresh over all
    probes, not at each step from a memory batch. The step may still conflict with one behavior
    while it agrees with the mean.
    """

    name: ClassVar[str] = "agem"
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "1812.00420"
    fidelity: ClassVar[str] = "simplified"

    def decide(self, conflict: ConflictStats) -> tuple[float, np.ndarray]:
        """Return the weights that remove the component of g against the mean."""
        n, mean, square = len(conflict.gram), conflict.products.mean(), conflict.gram.mean()
        return 1.0, np.zeros(n) if mean >= 0 or square <= 0 else np.full(n, -mean / square / n)
