"""Clip: limit the norm of the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median
from typing import ClassVar

import torch

from riprap.guards._base import Guard, GuardView, Proposal
from riprap.linalg import norm, to_local

WINDOW, FEWEST = 100, 10  # gradients of which the median is taken, and the fewest of them


@dataclass
class Clip(Guard):
    """g ← g · min(1, max_norm / ‖g‖), with the norm over all parameters of all ranks.

    Use it at the end of a `Chain`, after guards that add to the gradient: a trainer clips before
    the guards.

    Args:
        max_norm: the maximum norm. None: `outlier` times the median norm of the last 100
            gradients, and none before the 11th, so that only outliers are shortened, whatever the
            loss's scale. A fixed norm that most gradients exceed sets the length of each step.
        outlier: see `max_norm`.

    Source: Pascanu et al., 1211.5063, algorithm 1, with `max_norm`; a variant without.

    Raises:
        ConfigError: `max_norm` or `outlier` is not above 0.
    """

    max_norm: float | None = None
    outlier: float = 2.0
    norms: list[float] = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "clip"
    field_of_origin: ClassVar[str] = "optimization"
    source: ClassVar[str] = "1211.5063"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = ("norms",)

    def __post_init__(self) -> None:
        if self.max_norm is not None and not self.max_norm > 0:
            raise self._error(f"max_norm={self.max_norm}; it must be above 0, or None")
        if not self.outlier > 0:
            raise self._error(f"outlier={self.outlier}; it must be above 0")

    def start(self, view: GuardView) -> None:
        """Forget the norms of an earlier watch."""
        self.norms = []

    def limit(self) -> float:
        """Return the maximum norm of the coming gradient."""
        if self.max_norm is not None:
            return self.max_norm
        return self.outlier * median(self.norms) if len(self.norms) >= FEWEST else math.inf

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Shorten the gradient if it is too long."""
        size = float(norm(view.vector))
        before = {"norm": size}
        if not math.isfinite(size):
            return Proposal(detail="nothing was done: the gradient is not finite", before=before)
        limit = self.limit()
        if self.max_norm is None:
            self.norms = [*self.norms[1 - WINDOW :], size]
        if size <= limit:
            return Proposal(
                detail="nothing to do: the gradient is not longer than the limit",
                before=before,
                after=before,
            )
        parts = [to_local(part) for part in view.vector]
        vector = list(torch._foreach_mul(parts, limit / size))
        detail = f"shortened the gradient from {size:.3g} to {limit:.3g}"
        return Proposal(vector, detail, before, {"norm": limit})
