"""How far weights have moved, where, and in how many directions."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from riprap.diagnosis._interpolation import Way, squared

RANKS = (1, 4, 16)
EXACT = 2048  # longest shorter side of a matrix whose spectrum is worked out exactly
SPARE, ROUNDS = 8, 4  # of the randomised one


@dataclass
class Movement:
    """Sums over the weights of one layer.

    Attributes:
        parameters: how many numbers.
        before, moved: ‖θ₀‖², ‖θ − θ₀‖².
        matrices: the part of `moved` that lies in matrices.
        leading: the part of that in each matrix's top r singular directions, by r.
    """

    parameters: int = 0
    before: float = 0.0
    moved: float = 0.0
    matrices: float = 0.0
    leading: dict[int, float] = field(default_factory=lambda: dict.fromkeys(RANKS, 0.0))

    @property
    def relative(self) -> float:
        """‖θ − θ₀‖ / ‖θ₀‖; inf where something moved away from 0."""
        if self.before == 0:
            return float("inf") if self.moved else 0.0
        return (self.moved / self.before) ** 0.5

    @property
    def low_rank(self) -> dict[int, float]:
        """Share of the matrices' ‖θ − θ₀‖² in the top r directions of each, by r; empty if 0."""
        if self.matrices == 0:
            return {}
        return {rank: part / self.matrices for rank, part in self.leading.items()}


def movement(way: Way, names: list[str]) -> Movement:
    """Of the weights of these names."""
    found = Movement()
    for name in names:
        before, change = way.change(name)
        moved = squared(change)
        found.parameters += change.numel()
        found.before += squared(before)
        found.moved += moved
        if change.dim() > 1 and moved:
            found.matrices += moved
            spectrum = spectrum_of(change.flatten(1))
            for rank in RANKS:
                found.leading[rank] += float(spectrum[:rank].sum())
    return found


def spectrum_of(matrix: Tensor) -> Tensor:
    """Largest squared singular values first, at least 16 where there are as many; on the CPU.

    Exact by the Gramian of the shorter side, or by subspace iteration from a random start where it
    is longer than 2048 (Halko et al., 0909.4061).
    """
    if min(matrix.shape) > EXACT:
        made = torch.Generator().manual_seed(0)
        basis = torch.randn(matrix.shape[1], max(RANKS) + SPARE, generator=made).to(matrix)
        for _ in range(ROUNDS):
            basis = torch.linalg.qr(matrix.T @ torch.linalg.qr(matrix @ basis).Q).Q
        return torch.linalg.svdvals((matrix @ basis).cpu().double()).square()
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    # Scaled: squares of small changes would underflow.
    scale = wide.abs().max()
    gramian = (wide / scale) @ (wide / scale).T
    values = torch.linalg.eigvalsh(gramian.cpu().double()).flip(0).clamp_min(0)
    return values * float(scale) ** 2
