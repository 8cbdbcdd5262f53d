"""Change of the weights of a layer: its size, and its number of directions."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from riprap.diagnosis._interpolation import WeightPath, squared_norm

RANKS = (1, 4, 16)
MAX_EXACT_SIDE = 2048  # longest shorter side of a matrix with an exact spectrum
OVERSAMPLING, ITERATIONS = 8, 4  # of the randomized spectrum


@dataclass
class WeightChange:
    """Sums over the weights of one layer."""

    parameters: int = 0
    squared_norm_before: float = 0.0  # ‖θ₀‖²
    squared_change: float = 0.0  # ‖θ − θ₀‖²
    squared_matrix_change: float = 0.0  # the part of it in matrices
    # By r, the part of that in the top r singular directions of each matrix.
    leading: dict[int, float] = field(default_factory=lambda: dict.fromkeys(RANKS, 0.0))

    @property
    def relative_change(self) -> float:
        """‖θ − θ₀‖ / ‖θ₀‖; inf if weights of 0 changed."""
        if self.squared_norm_before == 0:
            return float("inf") if self.squared_change else 0.0
        return (self.squared_change / self.squared_norm_before) ** 0.5

    @property
    def low_rank(self) -> dict[int, float]:
        """By r, share of the matrices' ‖θ − θ₀‖² in their top r directions; empty if it is 0."""
        if self.squared_matrix_change == 0:
            return {}
        return {rank: part / self.squared_matrix_change for rank, part in self.leading.items()}


def weight_change(path: WeightPath, names: list[str]) -> WeightChange:
    """Compute the change of the named weights."""
    total = WeightChange()
    for name in names:
        before, delta = path.delta(name)
        squared_change = squared_norm(delta)
        total.parameters += delta.numel()
        total.squared_norm_before += squared_norm(before)
        total.squared_change += squared_change
        if delta.dim() > 1 and squared_change:
            total.squared_matrix_change += squared_change
            spectrum = squared_singular_values(delta.flatten(1))
            for rank in RANKS:
                total.leading[rank] += float(spectrum[:rank].sum())
    return total


def squared_singular_values(matrix: Tensor) -> Tensor:
    """Compute the largest squared singular values (at least 16), in falling order, on the CPU.

    Exact, from the Gramian of the shorter side; if that is longer than 2048, by subspace iteration
    from a random start (Halko et al., 0909.4061).
    """
    if min(matrix.shape) > MAX_EXACT_SIDE:
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(matrix.shape[1], max(RANKS) + OVERSAMPLING, generator=generator)
        basis = basis.to(matrix)
        for _ in range(ITERATIONS):
            basis = torch.linalg.qr(matrix.T @ torch.linalg.qr(matrix @ basis).Q).Q
        return torch.linalg.svdvals((matrix @ basis).cpu().double()).square()
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    scale = wide.abs().max()  # squares of small changes would underflow
    gramian = (wide / scale) @ (wide / scale).T
    values = torch.linalg.eigvalsh(gramian.cpu().double()).flip(0).clamp_min(0)
    return values * float(scale) ** 2
