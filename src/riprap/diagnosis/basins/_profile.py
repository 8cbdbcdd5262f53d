"""Scores around a checkpoint, and what they come to: VISAGE, widths, with intervals."""

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
    """One behaviour around the checkpoint, along each direction.

    Intervals are over directions: the probes are the same along all of them.

    Attributes:
        floor: the score under which the behaviour is broken.
        alphas: shape (points,), from −radius to radius, 0 in the middle; in units of each weight's
            own norm.
        scores: shape (directions, points), share of probes that still behave: 1 − S(α).
        doubtful: at how many of these points a margin was not finite (its probe counts as
            broken), or the margins were insufficient.
        judged: the scores by the model's own answers, same shape; None where none were asked for.
    """

    name: str
    floor: float
    alphas: Array
    scores: Array
    doubtful: int = 0
    judged: Array | None = None

    @property
    def start(self) -> float:
        """The score of the checkpoint itself; S(0) is 1 − this."""
        return float(self.scores[0, len(self.alphas) // 2])

    @property
    def visage(self) -> Estimate:
        """VISAGE: mean of S_max − S(α) over the points with S(α) < S_max, of a direction.

        S is the share of probes broken and S_max = 1, all of them, so that S_max − S(α) is the
        score. 0 along a direction where no probe behaves anywhere. Between 0 and 1; the paper
        (2405.17374) gives percent.
        """
        inside = (self.scores > 0).sum(1)
        return estimate(self.scores.sum(1) / np.maximum(inside, 1))

    @property
    def mean_score(self) -> Estimate:
        """Mean score over all points: to VISAGE a narrow basin is as good as a wide one."""
        return estimate(self.scores.mean(1))

    @property
    def widths(self) -> Array:
        """How far one can go before the score first falls under the floor, shape (directions, 2).

        Towards −α and +α, interpolated between points; the radius where it never falls, 0 where
        the checkpoint itself is broken.
        """
        middle = len(self.alphas) // 2
        away = self.alphas[middle:]
        sides = self.scores[:, middle::-1], self.scores[:, middle:]
        return np.array(
            [[_reach(away, side[d], self.floor) for side in sides] for d in range(len(self.scores))]
        )

    @property
    def width(self) -> Estimate:
        """The basin's half width: of each direction the mean of its two sides."""
        return estimate(self.widths.mean(1))

    @property
    def beyond(self) -> float:
        """Share of sides along which the score never fell: the true width is larger."""
        return float((self.widths == self.alphas[-1]).mean())

    @property
    def curve(self) -> list[Estimate]:
        """The mean score at each point."""
        return [estimate(self.scores[:, point]) for point in range(len(self.alphas))]

    @property
    def agreement(self) -> Estimate | None:
        """Spearman's rank correlation of `scores` and `judged` over the points of a direction.

        Directions along which one of them does not change have none. None where all are so, or
        nothing was judged.
        """
        if self.judged is None:
            return None
        both = zip(self.scores, self.judged, strict=True)
        found = [
            float(stats.spearmanr(fast, slow).statistic)
            for fast, slow in both
            if np.ptp(fast) and np.ptp(slow)
        ]
        return estimate(found) if found else None


def _reach(away: Array, scores: Array, floor: float) -> float:
    below = np.flatnonzero(scores < floor)
    if not len(below):
        return float(away[-1])
    at = int(below[0])
    if at == 0:
        return 0.0
    share = (scores[at - 1] - floor) / (scores[at - 1] - scores[at])
    return float(away[at - 1] + share * (away[at] - away[at - 1]))


@dataclass(frozen=True)
class Basin:
    """The ground around a checkpoint.

    Attributes:
        seed: of the directions; the same seed gives the same ones, the first ones first.
        behaviors: a profile each, by name.
    """

    seed: int
    behaviors: dict[str, Profile]

    def __getitem__(self, name: str) -> Profile:
        return self.behaviors[name]

    @property
    def width(self) -> Estimate:
        """The half width of the ground on which all behaviours stand.

        A refusal alone also stands where everything is refused, an over-refusal where nothing is.
        """
        nearest = np.min([own.widths for own in self.behaviors.values()], axis=0)
        return estimate(nearest.mean(1))


def grid(points: int, radius: float) -> Array:
    """α at `points` equal steps from −radius to radius, exactly 0 in the middle.

    Raises:
        ConfigError: an even number of points, or fewer than three; or a radius not above 0.
    """
    if type(points) is not int or points < 3 or points % 2 == 0:
        raise ConfigError(f"points is {points!r}; an odd number of 3 or more is needed")
    if not 0 < radius < math.inf:
        raise ConfigError(f"radius is {radius!r}; a finite number above 0 is needed")
    half = points // 2
    found: Array = radius * np.arange(-half, half + 1) / half
    return found
