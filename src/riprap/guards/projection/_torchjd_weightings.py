"""Aggregations of several objectives' gradients, by TorchJD, where the step is in conflict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from riprap.guards.projection._dual_qp import solve_dual
from riprap.guards.projection._gradient_surgery import ConflictStats, NormalizedSurgery


@dataclass
class TorchJDWeighting(NormalizedSurgery):
    """g and the p_b are treated as the gradients of as many tasks, once some ⟨g, p_b⟩ < 0.

    Without a conflict the step is left alone, where the papers would go on adding the p_b.
    """

    may_increase_norm: ClassVar[bool] = True

    def weights(self, gramian: Tensor, step: int) -> Tensor:
        """Weights of the rows, by their Gramian.

        Args:
            gramian: of [g; p_1 … p_n], shape (n + 1, n + 1), float64, of trace 1.
            step: for what is drawn at random.
        """
        raise NotImplementedError

    def combine(self, conflict: ConflictStats) -> tuple[float, np.ndarray]:
        """The weight of g, and those of the p_b."""
        n = len(conflict.products)
        gramian = np.empty((n + 1, n + 1))
        gramian[0, 0], gramian[1:, 1:] = conflict.squared_norm, conflict.gram
        gramian[0, 1:] = gramian[1:, 0] = conflict.products
        gramian /= np.trace(gramian)  # no weight depends on the unit; TorchJD's thresholds would
        found = self.weights(torch.from_numpy(gramian), conflict.step).numpy()
        return float(found[0]), found[1:]


@dataclass
class PCGrad(TorchJDWeighting):
    """Each of g, p_1 … p_n loses its parts against the others, in random order; they are summed.

    Source: Yu et al., 2001.06782, algorithm 1; weights by TorchJD. Simplified: the protected
    gradients are taken at the refresh, and join in only where g conflicts with one of them. The
    order is drawn from the step's number, the same on all ranks, and no generator is touched.
    """

    name: ClassVar[str] = "pcgrad"
    field_of_origin: ClassVar[str] = "multi-task learning"
    source: ClassVar[str] = "2001.06782"
    fidelity: ClassVar[str] = "simplified"

    def weights(self, gramian: Tensor, step: int) -> Tensor:
        """TorchJD's, with the generator put back."""
        from torchjd.aggregation import PCGradWeighting

        # A p_b of length 0 is divided by its square there, though only where a product is under 0.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(step)
            found: Tensor = PCGradWeighting()(gramian)
            return found


@dataclass
class UPGrad(TorchJDWeighting):
    """Each of g, p_1 … p_n is projected onto the cone of no conflict; their mean is taken.

    Source: Quinton and Rey, 2406.16232, eq. 5 with equal preferences; weights by TorchJD.
    Simplified: the protected gradients are taken at the refresh, and join in only where g conflicts
    with one of them. As a mean, it takes a shorter step towards the task than g itself.
    """

    name: ClassVar[str] = "upgrad"
    field_of_origin: ClassVar[str] = "multi-objective optimisation"
    source: ClassVar[str] = "2406.16232"
    fidelity: ClassVar[str] = "simplified"

    def weights(self, gramian: Tensor, step: int) -> Tensor:
        """TorchJD's, with a solver that singular Gramians do not disturb."""
        from torchjd.aggregation import UPGradWeighting

        found: Tensor = UPGradWeighting(projector=_projector())(gramian)
        return found


def _projector() -> Any:
    """TorchJD's interface to `dual`: min vᵀGv, v ≥ u, for each row u."""
    from torchjd.linalg import DualConeProjector

    class Projector(DualConeProjector):
        def __call__(self, U: Tensor, G: Tensor) -> Tensor:  # noqa: N803 as TorchJD names them
            gram = G.numpy()
            rows = [u + solve_dual(gram, -gram @ u) for u in U.numpy()]
            return torch.from_numpy(np.stack(rows))

    return Projector()
