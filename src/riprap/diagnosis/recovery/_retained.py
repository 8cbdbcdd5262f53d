"""What is left of the knowledge, on the probes on which there is something to explain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riprap.diagnosis.recovery._answer_choices import Answers, share

RESAMPLES = 2000


class Share:
    """The weighted share of the probes that there is something to explain of.

    These are the lost ones. With a contrast a side that lost none is there as a whole, to be told
    apart from, and each side has half of the weight.

    Attributes:
        count: how many probes of one weight tell as much; of two sides the smaller one decides.
    """

    def __init__(self, now: Answers, lost: NDArray[np.bool_]) -> None:
        right = now.right if now.two_sided else None
        if right is None or not lost.any():
            there = lost if lost.any() else np.ones_like(lost)
            weights, self.count = now.weights[there], float(there.sum())
        else:
            whole = np.array([not lost[right == side].any() for side in (0, 1)])
            there = lost | whole[right]
            sides = np.bincount(right[there], minlength=2)
            weights, self.count = 0.5 / sides[right[there]], 2.0 * sides.min()
        self.rows: list[int] = np.flatnonzero(there).tolist()
        self.weights = weights / weights.sum()

    def of(self, holds: NDArray[Any]) -> float:
        """On what share of them something holds, which is told of all probes."""
        return share(holds[self.rows], self.weights)


def most(*floors: float) -> float:
    """The largest of what is known to be had without knowledge; NaN where nothing is."""
    return max((floor for floor in floors if not math.isnan(floor)), default=math.nan)


@dataclass(frozen=True)
class Left:
    """What is left of the knowledge: (known − guessed) ÷ (known of the reference − guessed).

    Where it is not known what guessing gives, as if it gave nothing: never too little.
    """

    known: float
    before: float
    guessed: float
    count: float

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return float(self._of(self.known, self.before))

    def interval(self, seed: int) -> tuple[float, float]:
        """95 %, by draws from the shares that are as likely after the facts.

        By resampling, few probes that are all alike would leave no doubt at all.
        """
        rng = np.random.default_rng(seed)
        one, other = (
            rng.beta(held * self.count + 0.5, (1 - held) * self.count + 0.5, RESAMPLES)
            for held in (self.known, self.before)
        )
        low, high = np.quantile(self._of(one, other), [0.025, 0.975])
        return float(low), float(high)

    def _of(self, known: Any, before: Any) -> Any:
        least = 0.0 if math.isnan(self.guessed) else self.guessed
        return np.clip((known - least) / np.maximum(before - least, 1e-9), 0.0, 1.0)
