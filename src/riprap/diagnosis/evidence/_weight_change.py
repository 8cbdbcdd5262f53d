"""How far weights have moved, where, and in how many directions."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from riprap.diagnosis._interpolation import WeightPath, squared_norm

RANKS = (1, 4, 16)
MAX_EXACT_SIDE = 2048  # longest shorter side of a matrix whose spectrum is worked out exactly
OVERSAMPLING, ITERATIONS = 8, 4  # of the randomised one


@dataclass
class WeightChange:
    """Sums over the weights of one layer.

    Attributes:
        parameters: how many numbers.
        before, moved: ‖θ₀‖², ‖θ − θ₀‖².
        matrices: the part of `moved` that lies in matrices.
        leading: the part of that in each matrix's top r singular directions, by r.
    """

    parameters: int = 0
    squared_norm_before: float = 0.0
    squared_change: float = 0.0
    squared_matrix_change: float = 0.0
    leading: dict[int, float] = field(default_factory=lambda: dict.fromkeys(RANKS, 0.0))

    @property
    def relative_change(self) -> float:
        """‖θ − θ₀‖ / ‖θ₀‖; inf where something moved away from 0."""
        if self.squared_norm_before == 0:
            return float("inf") if self.squared_change else 0.0
        return (self.squared_change / self.squared_norm_before) ** 0.5

    @property
    def low_rank(self) -> dict[int, float]:
        """Share of the matrices' ‖θ − θ₀‖² in the top r directions of each, by r; empty if 0."""
        if self.squared_matrix_change == 0:
            return {}
        return {rank: part / self.squared_matrix_change for rank, part in self.leading.items()}


def weight_change(way: WeightPath, names: list[str]) -> WeightChange:
    """Of the weights of these names."""
    found = WeightChange()
    for name in names:
        before, change = way.delta(name)
        moved = squared_norm(change)
        found.parameters += change.numel()
        found.squared_norm_before += squared_norm(before)
        found.squared_change += moved
        if change.dim() > 1 and moved:
            found.squared_matrix_change += moved
            spectrum = squared_singular_values(change.flatten(1))
            for rank in RANKS:
                found.leading[rank] += float(spectrum[:rank].sum())
    return found


def squared_singular_values(matrix: Tensor) -> Tensor:
    """Largest squared singular values first, at least 16 where there are as many; on the CPU.

    Exact by the Gramian of the shorter side, or by subspace iteration from a random start where it
    is longer than 2048 (Halko et al., 0909.4061).
    """
    if min(matrix.shape) > MAX_EXACT_SIDE:
        made = torch.Generator().manual_seed(0)
        basis = torch.randn(matrix.shape[1], max(RANKS) + OVERSAMPLING, generator=made).to(matrix)
        for _ in range(ITERATIONS):
            basis = torch.linalg.qr(matrix.T @ torch.linalg.qr(matrix @ basis).Q).Q
        return torch.linalg.svdvals((matrix @ basis).cpu().double()).square()
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    # Scaled: squares of small changes would underflow.
    scale = wide.abs().max()
    gramian = (wide / scale) @ (wide / scale).T
    values = torch.linalg.eigvalsh(gramian.cpu().double()).flip(0).clamp_min(0)
    return values * float(scale) ** 2
