"""A decline established by betting, with a stated probability of ever alarming falsely in a run."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from riprap.detectors._history import BehaviorHistory
from riprap.detectors._sequential import Sequential

STAKES = np.arange(1, 20) / 20  # shares of the largest stake that can not lose everything


class BettingTest(Sequential):
    """`warning` once a mean decline of more than `tolerated` is established at level `alpha`.

    Each probe is paired with itself at the start. A gambler bets, probe by probe, that the mean
    decline exceeds what is tolerated; under the null her expected wealth never exceeds 1, so wealth
    of 1/α refutes it (Waudby-Smith & Ramdas, 2010.09686; here with a mixture of fixed stakes, which
    makes the order of the probes irrelevant).

    The same probes are looked at again at each visit, so visits are no fresh evidence and their
    wealth may not be multiplied. α is split instead: over the behaviours of the run, and over its
    visits as 1 / k(k + 1), which sums to 1. Whatever the dependence between visits, the probability
    of ever alerting falsely in a run is then at most α (ours): exactly so for visits that are fixed
    beforehand and a given scale; a monitor chooses its visits, and for it the rate is measured.

    What is tested is the mean of the declines clipped to `tolerated` ± `clip`, over the population
    that the probes were drawn from; that few probes rise much cannot hide that most fall.

    Attributes:
        alpha: probability of a false alert in a run, all behaviours and visits together.
        of: decline of the margin, as a share of the start's mean margin, or of the score.
        tolerated, clip: in the same unit.
    """

    kind: Literal["betting"] = "betting"
    alpha: float = Field(default=0.05, gt=0, lt=1)
    of: Literal["margin", "score"] = "margin"
    tolerated: float = Field(default=0.05, ge=0)
    clip: float = Field(default=0.1, gt=0)
    description: ClassVar[str] = "decline established, log of the wealth over what its level asks"

    @property
    def alert_threshold(self) -> float:
        """Wealth as large as the level asks."""
        return 0.0

    def input_signal(self) -> str:
        """The decline of the margin, or of the score."""
        return self.of

    def statistic(self, track: BehaviorHistory) -> np.ndarray:
        """Log of the wealth ÷ the wealth that α asks for, after each visit; −inf at the start."""
        visits = np.arange(1, len(track.margins))
        asked = np.log(visits * (visits + 1) * track.n_behaviors / self.alpha)
        wealth = log_wealth(self.declines(track), self.tolerated, self.clip)
        return np.concatenate([[-np.inf], wealth[1:] - asked])

    def latest(self, track: BehaviorHistory) -> float | None:
        """The end of the path, from the first visit and the last one alone."""
        ends = BehaviorHistory(track.behavior, track.floor, margins=[track.margins[0], track.margins[-1]])
        visits = len(track.margins) - 1
        if not visits:
            return -np.inf
        asked = np.log(visits * (visits + 1) * track.n_behaviors / self.alpha)
        return float(log_wealth(self.declines(ends), self.tolerated, self.clip)[-1] - asked)

    def min_probes(self, watched: int) -> int:
        """With fewer probes not even a collapse of all could be established at the first visit."""
        growth = np.log1p(STAKES)[:, None] * np.arange(1, 1000)
        wealth = np.log(np.exp(growth - growth[-1]).mean(0)) + growth[-1]
        return int(np.argmax(wealth > np.log(2 * watched / self.alpha))) + 1

    def untestable_reason(self, track: BehaviorHistory) -> str:
        """See `Detector.unfit`."""
        least, n = self.min_probes(track.n_behaviors), len(track.margins[0])
        if n >= least:
            return ""
        return (
            f"behaviour {track.behavior!r} has {n} probes, and a decline can be established at "
            f"level {self.alpha:g} on {least} at the least: it will have no {self.level}"
        )

    def declines(self, track: BehaviorHistory) -> np.ndarray:
        """Decline of each probe since the start, shape (visits, n_probes)."""
        margins = np.array(track.margins)
        if self.of == "score":
            return (margins[0] > 0).astype(float) - (margins > 0)
        scale = margins[0].mean()
        return (margins[0] - margins) / scale if scale > 0 else np.zeros_like(margins)


def log_wealth(declines: np.ndarray, tolerated: float, clip: float) -> np.ndarray:
    """Log of the gambler's wealth after all probes, averaged over stakes; shape (visits,).

    With u = (clipped decline − (tolerated − clip)) / 2·clip in [0, 1] the null says that the mean
    of u is at most ½, and a stake λ < 2 multiplies the wealth by 1 + λ(u − ½) ≥ 0.

    Args:
        declines: shape (visits, n_probes).
    """
    u = (np.clip(declines, tolerated - clip, tolerated + clip) - tolerated + clip) / (2 * clip)
    grown = np.log1p(2 * STAKES[:, None, None] * (u - 0.5)).sum(-1)
    top = grown.max(0)
    return top + np.log(np.exp(grown - top).mean(0))
