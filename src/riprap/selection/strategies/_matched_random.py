"""Matched random samples: controls that share the lengths or the categories of another choice."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import numpy as np

from riprap.selection._scores import Array, Scores
from riprap.selection.strategies._base import Strategy
from riprap.selection.strategies._moderate import Moderate

STRATA, LEAST = 20, 4  # most strata of lengths; samples of a stratum in a small batch


@dataclass(frozen=True)
class MatchedRandom(Strategy):
    """Base of random choices with as many samples of each stratum as another strategy selects.

    Within a stratum the choice is uniform, without replacement. What is left of the other
    strategy's effect, when it is compared with this one, is not due to the strata.

    Attributes:
        inner: the strategy whose choice is matched.
    """

    inner: Strategy = field(default_factory=Moderate)

    source = "control"

    @property
    def label(self) -> str:
        """See `Strategy.label`."""
        return f"{self.name}:{self.inner.label}"

    @property
    def all_needs(self) -> frozenset[str]:
        """`needs`, with those of the inner strategy."""
        return self.needs | self.inner.all_needs

    def effective_ratio(self, scores: Scores, ratio: float) -> float:
        """See `Strategy.effective_ratio`."""
        return self.inner.effective_ratio(scores, ratio)

    @abstractmethod
    def strata(self, scores: Scores) -> Array:
        """Return the number of each sample's stratum, from 0, shape (n,)."""

    def choose(self, scores: Scores, count: int, rng: np.random.Generator) -> Array:
        """See `Strategy.choose`."""
        strata = self.strata(scores)
        sizes = np.bincount(strata)
        wanted = np.bincount(strata[self.inner.choose(scores, count, rng)], minlength=len(sizes))
        shuffled = rng.permutation(len(strata))
        grouped = shuffled[np.argsort(strata[shuffled], kind="stable")]
        place = np.arange(len(strata)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return grouped[place < np.repeat(wanted, sizes)]


class RandomByLength(MatchedRandom):
    """Random samples with the lengths of those that another strategy selects (our control).

    Lengths are response tokens. Neighbors in length form at most 20 strata of about equal size, and
    of about four samples in a small batch; samples of equal length are in one stratum.
    """

    name = "random_by_length"

    def strata(self, scores: Scores) -> Array:
        """See `MatchedRandom.strata`."""
        n = len(scores)
        count = max(1, min(STRATA, n // LEAST))
        first = np.searchsorted(np.sort(scores.tokens), scores.tokens)  # ties have the first place
        return np.unique(first * count // n, return_inverse=True)[1].reshape(n)


class RandomByCategory(MatchedRandom):
    """Random samples with the categories of those that another strategy selects (our control).

    The categories are yours: `Selector(row_id=..., categories={id: category})`.
    """

    name = "random_by_category"
    needs = frozenset({"category"})

    def strata(self, scores: Scores) -> Array:
        """See `MatchedRandom.strata`."""
        return np.unique(scores.require("category"), return_inverse=True)[1].reshape(len(scores))
