"""Retained share of the knowledge, on the probes that were lost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riprap.diagnosis.recovery._answer_choices import AnswerTable, weighted_share

RESAMPLES = 2000
MAX_TIMES = 64  # as many probes, that are considered for a clear verdict


class LostProbeWeights:
    """Weights of the lost probes, or of all probes if none was lost.

    With a contrast, a side that lost no probes is included as a whole, because the model must
    distinguish the two sides; each side then has half of the weight. `n_effective` is the effective
    number of probes; with two sides, twice that of the smaller side.
    """

    def __init__(self, now: AnswerTable, lost: NDArray[np.bool_]) -> None:
        sides = now.correct if now.two_sided else None
        if sides is None or not lost.any():
            included = lost if lost.any() else np.ones_like(lost)
            weights, self.n_effective = now.weights[included], float(included.sum())
        else:
            without_loss = np.array([not lost[sides == side].any() for side in (0, 1)])
            included = lost | without_loss[sides]
            sizes = np.bincount(sides[included], minlength=2)
            weights, self.n_effective = 0.5 / sizes[sides[included]], 2.0 * sizes.min()
        self.rows: list[int] = np.flatnonzero(included).tolist()
        self.weights = weights / weights.sum()

    def share(self, holds: NDArray[Any]) -> float:
        """Compute the weighted share of a condition that is given for all probes."""
        return weighted_share(holds[self.rows], self.weights)


def nanmax(*values: float) -> float:
    """Return the largest value that is not NaN; NaN if there is none."""
    return max((value for value in values if not math.isnan(value)), default=math.nan)


@dataclass(frozen=True)
class RetainedKnowledge:
    """Retained share: (known − guess rate) ÷ (known before − guess rate).

    An unknown guess rate (NaN) counts as 0, so the share is never too low.
    """

    known: float  # accuracy of the model
    known_before: float  # accuracy of the reference
    guess_rate: float  # accuracy without knowledge
    n: float  # effective number of probes

    @property
    def fraction(self) -> float:
        """Retained share, from 0 to 1."""
        return float(self._fraction(self.known, self.known_before))

    def interval(self, seed: int) -> tuple[float, float]:
        """Compute the 95 % interval from draws of Jeffreys posteriors of both accuracies.

        The bootstrap would give an interval of no width for few probes that all agree.
        """
        rng = np.random.default_rng(seed)
        known, known_before = (
            rng.beta(share * self.n + 0.5, (1 - share) * self.n + 0.5, RESAMPLES)
            for share in (self.known, self.known_before)
        )
        low, high = np.quantile(self._fraction(known, known_before), [0.025, 0.975])
        return float(low), float(high)

    def _fraction(self, known: Any, known_before: Any) -> Any:
        guess = 0.0 if math.isnan(self.guess_rate) else self.guess_rate
        return np.clip((known - guess) / np.maximum(known_before - guess, 1e-9), 0.0, 1.0)

    def times_needed(self, kept_above: float, lost_below: float, seed: int) -> float:
        """Return how many times as many probes decide between kept and lost, if the shares stay.

        NaN if the share lies between the two, where no number of probes decides.
        """
        if lost_below < self.fraction < kept_above:
            return math.nan

        def decides(times: float) -> bool:
            more = RetainedKnowledge(self.known, self.known_before, self.guess_rate, self.n * times)
            low, high = more.interval(seed)
            return low > lost_below if self.fraction >= kept_above else high < kept_above

        few, many = 1.0, 1.0
        while not decides(many):
            few, many = many, 2 * many
            if many > MAX_TIMES:
                return math.nan
        for _ in range(6):
            middle = (few + many) / 2
            few, many = (few, middle) if decides(middle) else (middle, many)
        return many
