"""Adaptive: select fewer samples, the more of a protected margin is spent."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from riprap.errors import ConfigError
from riprap.selection._scores import Array, Scores
from riprap.selection.strategies._base import Strategy, own_candidates
from riprap.selection.strategies._moderate import Moderate


@dataclass(frozen=True)
class Adaptive(Strategy):
    """Another strategy, at a ratio that falls from `ratio` to `min_ratio` as a margin is spent.

    effective ratio = ratio − (ratio − min_ratio) · spent, with spent in [0, 1] the fraction of its
    mean margin at the start that the worst behavior has lost. Ours.

    Attributes:
        min_ratio: the ratio when a margin is fully spent.
        inner: the strategy that chooses.
    """

    min_ratio: float = 0.05
    inner: Strategy = field(default_factory=Moderate)

    name = "adaptive"
    needs = frozenset({"margin_spent"})

    @property
    def all_needs(self) -> frozenset[str]:
        """`needs`, with those of the inner strategy."""
        return self.needs | self.inner.all_needs

    def effective_ratio(self, scores: Scores, ratio: float) -> float:
        """See `Strategy.effective_ratio`."""
        if scores.margin_spent is None:
            raise ConfigError("adaptive needs behaviors: give Selector(behaviors=[...])")
        spent = min(max(scores.margin_spent, 0.0), 1.0)
        return ratio - (ratio - min(self.min_ratio, ratio)) * spent

    def candidates(self, scores: Scores) -> Array:
        """See `Strategy.candidates`."""
        return own_candidates(self.inner, scores)

    def choose(self, scores: Scores, count: int, rng: np.random.Generator) -> Array:
        """See `Strategy.choose`."""
        return self.inner.choose(scores, count, rng)
