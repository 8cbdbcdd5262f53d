"""Scores around a checkpoint, and their summaries with intervals: VISAGE, widths."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from riprap.diagnosis._base import Estimate, estimate
from riprap.errors import ConfigError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """Scores of one behavior along each direction.

    Intervals are over directions, because all directions have the same probes.

    Attributes:
        floor: the score under which the behavior is broken.
        alphas: shape (points,), from −radius to radius with 0 in the middle, in norms of each
            weight.
        scores: shape (directions, points), share of probes that pass: 1 − S(α).
        doubtful: number of points with a margin that was not finite (its probe counts as broken),
            or with insufficient margins.
        judged: scores of judged answers, same shape; None without a judge.
    """

    name: str
    floor: float
    alphas: Array
    scores: Array
    doubtful: int = 0
    judged: Array | None = None

    @property
    def start(self) -> float:
        """Score of the checkpoint itself: 1 − S(0)."""
        return float(self.scores[0, len(self.alphas) // 2])

    @property
    def visage(self) -> Estimate:
        """VISAGE: for a direction, the mean of S_max − S(α) over the points with S(α) < S_max.

        S is the share of broken probes and S_max = 1, so S_max − S(α) is the score. 0 for a
        direction on which no probe passes anywhere. Between 0 and 1; the paper (2405.17374) uses
        percent.
        """
        inside = (self.scores > 0).sum(1)
        return estimate(self.scores.sum(1) / np.maximum(inside, 1))

    @property
    def mean_score(self) -> Estimate:
        """Mean score over all points; unlike VISAGE it is lower for a narrow basin."""
        return estimate(self.scores.mean(1))

    @property
    def widths(self) -> Array:
        """Distance at which the score first falls under the floor, shape (directions, 2).

        Toward −α and +α, interpolated between points; the radius if it never falls, 0 if the
        checkpoint itself is broken.
        """
        middle = len(self.alphas) // 2
        distances = self.alphas[middle:]
        rows = zip(self.scores[:, middle::-1], self.scores[:, middle:], strict=True)
        crossings = [[_first_crossing(distances, side, self.floor) for side in row] for row in rows]
        return np.array(crossings)

    @property
    def width(self) -> Estimate:
        """Half width of the basin: for a direction, the mean of its two sides."""
        return estimate(self.widths.mean(1))

    @property
    def unbounded_share(self) -> float:
        """Share of sides on which the score never fell: their true width is larger."""
        return float((self.widths == self.alphas[-1]).mean())

    @property
    def curve(self) -> list[Estimate]:
        """Mean score at each point."""
        return [estimate(self.scores[:, point]) for point in range(len(self.alphas))]

    @property
    def agreement(self) -> Estimate | None:
        """Spearman's rank correlation of `scores` and `judged` over the points of a direction.

        Directions on which one of them is constant are omitted. None if that leaves no direction,
        or without a judge.
        """
        if self.judged is None:
            return None
        correlations = [
            float(stats.spearmanr(scores, judged).statistic)
            for scores, judged in zip(self.scores, self.judged, strict=True)
            if np.ptp(scores) and np.ptp(judged)
        ]
        return estimate(correlations) if correlations else None


def _first_crossing(distances: Array, scores: Array, floor: float) -> float:
    """Distance at which a score first falls under the floor."""
    below = np.flatnonzero(scores < floor)
    if not len(below):
        return float(distances[-1])
    at = int(below[0])
    if at == 0:
        return 0.0
    share = (scores[at - 1] - floor) / (scores[at - 1] - scores[at])
    return float(distances[at - 1] + share * (distances[at] - distances[at - 1]))


@dataclass(frozen=True)
class Basin:
    """Scores of several behaviors around a checkpoint.

    Attributes:
        seed: of the directions; the same seed gives the same directions in the same order.
        behaviors: profiles by name.
    """

    seed: int
    behaviors: dict[str, Profile]

    def __getitem__(self, name: str) -> Profile:
        return self.behaviors[name]

    @property
    def width(self) -> Estimate:
        """Half width within which all behaviors work.

        A refusal alone also passes where everything is refused, and an over-refusal where nothing
        is refused.
        """
        smallest = np.min([profile.widths for profile in self.behaviors.values()], axis=0)
        return estimate(smallest.mean(1))


def grid(points: int, radius: float) -> Array:
    """Return equally spaced α from −radius to radius, exactly 0 in the middle.

    Raises:
        ConfigError: an even number of points, fewer than three, or a radius that is not above 0.
    """
    if type(points) is not int or points < 3 or points % 2 == 0:
        raise ConfigError(f"points is {points!r}; pass an odd number of 3 or more")
    if not 0 < radius < math.inf:
        raise ConfigError(f"radius is {radius!r}; pass a finite number above 0")
    half = points // 2
    alphas: Array = radius * np.arange(-half, half + 1) / half
    return alphas
