"""PCGrad and UPGrad: aggregate g and the protected gradients by TorchJD if there is a conflict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from riprap._extras import require
from riprap.guards.projection._dual_qp import solve_dual
from riprap.guards.projection._gradient_surgery import ConflictStats, NormalizedSurgery


@dataclass
class TorchJDWeighting(NormalizedSurgery):
    """Base of guards that treat g and the p_b as gradients of separate tasks if some ⟨g, p_b⟩ < 0.

    Without a conflict the step is unchanged; the papers would still add the p_b. The
    p_b are those of the behaviors whose mean margin is below its start, and the result is at most
    as long as g, unless `of="loss", normalize=False` asks for the papers' rules.

    Raises:
        MissingExtraError: torchjd is not installed.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require("torchjd", "torchjd")

    @property
    def pulls(self) -> bool:
        """True: the p_b are added to the step."""
        return True

    def weights(self, gramian: Tensor, step: int) -> Tensor:
        """Return the weights of the rows [g; p_1 … p_n], shape (n + 1,).

        Their Gramian, float64, has trace 1; `step` is a seed for random draws.
        """
        raise NotImplementedError

    def combine(self, conflict: ConflictStats) -> tuple[float, np.ndarray]:
        """Return the weight of g and the weights of the p_b."""
        n = len(conflict.products)
        gramian = np.empty((n + 1, n + 1))
        gramian[0, 0], gramian[1:, 1:] = conflict.squared_norm, conflict.gram
        gramian[0, 1:] = gramian[1:, 0] = conflict.products
        gramian /= np.trace(gramian)  # TorchJD's thresholds are absolute
        weights = self.weights(torch.from_numpy(gramian), conflict.step).numpy()
        return float(weights[0]), weights[1:]


@dataclass
class PCGrad(TorchJDWeighting):
    """Sum of g, p_1 … p_n after projecting each away from those it conflicts with, in random order.

    Source: Yu et al., 2001.06782, algorithm 1; weights by TorchJD. Simplified: the protected
    gradients are computed at each refresh and are added only if g conflicts with one of them. The
    order is seeded by the step number: the same on all ranks, with the global generator unchanged.
    """

    name: ClassVar[str] = "pcgrad"
    field_of_origin: ClassVar[str] = "multi-task learning"
    source: ClassVar[str] = "2001.06782"
    fidelity: ClassVar[str] = "simplified"

    def weights(self, gramian: Tensor, step: int) -> Tensor:
        """Return TorchJD's weights; restore the random generator."""
        from torchjd.aggregation import PCGradWeighting

        # TorchJD divides by ‖p_b‖² only if a product is negative, so never for a p_b of length 0.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(step)
            weights: Tensor = PCGradWeighting()(gramian)
            return weights


@dataclass
class UPGrad(TorchJDWeighting):
    """Mean of g, p_1 … p_n after projecting each onto the dual cone, where nothing conflicts.

    Source: Quinton and Rey, 2406.16232, eq. 5 with equal preferences; weights by TorchJD.
    Simplified: the protected gradients are computed at each refresh and are added only if g
    conflicts with one of them. As a mean, the result is a shorter step toward the task than g.
    """

    name: ClassVar[str] = "upgrad"
    field_of_origin: ClassVar[str] = "multi-objective optimization"
    source: ClassVar[str] = "2406.16232"
    fidelity: ClassVar[str] = "simplified"

    def weights(self, gramian: Tensor, step: int) -> Tensor:
        """Return TorchJD's weights, with a solver that also works for singular Gramians."""
        from torchjd.aggregation import UPGradWeighting

        weights: Tensor = UPGradWeighting(projector=_projector())(gramian)
        return weights


def _projector() -> Any:
    """Return TorchJD's interface to `solve_dual`: min vᵀGv, v ≥ u, for each row u."""
    from torchjd.linalg import DualConeProjector

    class Projector(DualConeProjector):
        def __call__(self, U: Tensor, G: Tensor) -> Tensor:  # noqa: N803 as TorchJD names them
            gram = G.numpy()
            rows = [u + solve_dual(gram, -gram @ u) for u in U.numpy()]
            return torch.from_numpy(np.stack(rows))

    return Projector()
