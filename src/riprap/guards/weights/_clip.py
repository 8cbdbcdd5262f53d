"""Clip: limit the norm of the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from riprap.guards._base import Guard, GuardView, Proposal
from riprap.linalg import norm, to_local


@dataclass
class Clip(Guard):
    """g ← g · min(1, max_norm / ‖g‖), with the norm over all parameters of all ranks.

    Use it at the end of a `Chain`, after guards that add to the gradient: a trainer clips before
    the guards.

    Args:
        max_norm: the maximum norm.

    Source: Pascanu et al., 1211.5063, algorithm 1. Faithful.

    Raises:
        ConfigError: `max_norm` is not above 0.
    """

    max_norm: float = 1.0

    name: ClassVar[str] = "clip"
    field_of_origin: ClassVar[str] = "optimization"
    source: ClassVar[str] = "1211.5063"
    fidelity: ClassVar[str] = "faithful"

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise self._error(f"max_norm={self.max_norm}; it must be above 0")

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Shorten the gradient if it is too long."""
        size = float(norm(view.vector))
        before = {"norm": size}
        if not math.isfinite(size):
            return Proposal(detail="nothing was done: the gradient is not finite", before=before)
        if size <= self.max_norm:
            return Proposal(
                detail="nothing to do: the gradient is not longer than the limit",
                before=before,
                after=before,
            )
        parts = [to_local(part) for part in view.vector]
        vector = list(torch._foreach_mul(parts, self.max_norm / size))
        detail = f"shortened the gradient from {size:.3g} to {self.max_norm:.3g}"
        return Proposal(vector, detail, before, {"norm": self.max_norm})
