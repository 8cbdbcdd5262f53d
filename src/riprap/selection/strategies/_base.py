"""What every strategy is: a rule from small arrays to the samples that are taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from riprap.selection._scores import Array, Scores

MODERATE_SOURCE = "2604.17215, algorithm 1"


@dataclass(frozen=True)
class Strategy:
    """A rule of choice. It decides; whoever runs it takes the gradients apart.

    Attributes:
        needs: which numbers it reads beside losses: "norm", "proxy", "harm", "drift", "gram", or
            the name of a direction.
        source: paper and equation, and how faithful this is: faithful, simplified or variant.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = "ours"
    verdict: ClassVar[str] = "ours"

    @property
    def reads(self) -> frozenset[str]:
        """`needs`, with those of a strategy inside."""
        return self.needs

    def share(self, scores: Scores, ratio: float) -> float:
        """The share of the samples to take, of a ratio that was asked for."""
        return ratio

    def choose(self, scores: Scores, count: int, noise: np.random.Generator) -> Array:
        """Indices of at most `count` samples, in no order."""
        raise NotImplementedError


def usual_losses(scores: Scores) -> Array:
    """C = {i : |L_i − mean| ≤ std}, by indices; std over the batch, not corrected."""
    distance = np.abs(scores.loss - scores.loss.mean())
    # Equal losses differ from their mean by rounding alone.
    return np.flatnonzero(distance <= scores.loss.std() * (1 + 1e-9) + 1e-12)


def smallest(values: Array, count: int) -> Array:
    """Indices of the `count` smallest values; of equal ones the first."""
    return np.argsort(values, kind="stable")[:count]
