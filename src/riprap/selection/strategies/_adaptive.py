"""Fewer samples, the more of a protected margin is spent."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from riprap.errors import ConfigError
from riprap.selection._scores import Array, Scores
from riprap.selection.strategies._base import Strategy
from riprap.selection.strategies._moderate import Moderate


@dataclass(frozen=True)
class Adaptive(Strategy):
    """Another strategy, at a ratio that falls from `ratio` to `least` as the margin is spent.

    share = ratio − (ratio − least) · drift, with drift in [0, 1] the share of the mean margin at
    the start that the worst behaviour has lost. Ours.

    Attributes:
        least: the ratio once a margin is gone.
        inner: what chooses.
    """

    least: float = 0.05
    inner: Strategy = field(default_factory=Moderate)

    name = "adaptive"
    needs = frozenset({"drift"})

    @property
    def reads(self) -> frozenset[str]:
        """`needs`, with those of the strategy inside."""
        return self.needs | self.inner.reads

    def share(self, scores: Scores, ratio: float) -> float:
        """See `Strategy.share`."""
        if scores.drift is None:
            raise ConfigError("adaptive needs behaviours: give Selector(behaviors=[...])")
        return ratio - (ratio - min(self.least, ratio)) * min(max(scores.drift, 0.0), 1.0)

    def choose(self, scores: Scores, count: int, noise: np.random.Generator) -> Array:
        """See `Strategy.choose`."""
        return self.inner.choose(scores, count, noise)
