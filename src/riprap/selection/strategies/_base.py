"""Base class of all strategies: a rule from a few small arrays to the selected samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from riprap.selection._scores import Array, Scores

MODERATE_SOURCE = "2604.17215, algorithm 1"


@dataclass(frozen=True)
class Strategy(ABC):
    """Rule that chooses samples by their scores.

    A subclass must define `name` and `choose`. It should define `needs`, `source` and `fidelity`.
    It may override `all_needs` (a strategy that contains another), `effective_ratio`, and, beside
    `choose`, `candidates`.

    Attributes:
        name: the strategy's name, as in `Selector(strategy=...)`.
        needs: scores that `choose` reads beside losses: "norm", "proxy", "harm", "margin_spent",
            "gram", "category", or the name of a direction.
        source: paper and equation.
        fidelity: faithful, simplified or variant; "ours" without a paper.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = "ours"
    fidelity: ClassVar[str] = "ours"

    @property
    def label(self) -> str:
        """The name, with that of an inner strategy that is not told by it."""
        return self.name

    @property
    def all_needs(self) -> frozenset[str]:
        """`needs`, with those of an inner strategy."""
        return self.needs

    def effective_ratio(self, scores: Scores, ratio: float) -> float:
        """Return the fraction of the samples to select, where the user asked for `ratio`."""
        return ratio

    def candidates(self, scores: Scores) -> Array:
        """Return the indices of the samples whose scores `choose` reads, by their losses alone.

        The gradients of the others are not computed, and their scores are NaN.
        """
        return np.arange(len(scores))

    @abstractmethod
    def choose(self, scores: Scores, count: int, rng: np.random.Generator) -> Array:
        """Return the indices of at most `count` samples, in any order."""


def own_candidates(strategy: Strategy, scores: Scores) -> Array:
    """Return the strategy's candidates; all samples if a subclass has another `choose` only."""

    def owner(name: str) -> type:
        return next(cls for cls in type(strategy).__mro__ if name in vars(cls))

    if owner("choose") is not owner("candidates"):
        return np.arange(len(scores))
    return strategy.candidates(scores)


def within_one_std(scores: Scores) -> Array:
    """Return the indices C = {i : |L_i − mean| ≤ std}; std over the batch, without correction."""
    distance = np.abs(scores.loss - scores.loss.mean())
    # Equal losses differ from their mean by rounding only.
    return np.flatnonzero(distance <= scores.loss.std() * (1 + 1e-9) + 1e-12)


def smallest_indices(values: Array, count: int) -> Array:
    """Return the indices of the `count` smallest values; of equal values the first."""
    return np.argsort(values, kind="stable")[:count]
