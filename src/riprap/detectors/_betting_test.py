"""Betting test of a decline, with a bounded probability of any false alert in a run."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from riprap.detectors._history import BehaviorHistory
from riprap.detectors._sequential import Sequential

STAKES = np.arange(1, 20) / 20  # fractions of the largest stake that cannot lose everything


class BettingTest(Sequential):
    """`warning` once a mean decline of more than `tolerated` is established at level `alpha`.

    Each probe is paired with itself at the start. A gambler bets, probe by probe, that the mean
    decline exceeds the tolerated one. Under the null hypothesis the expected wealth never exceeds
    1, so a wealth of 1/α rejects it (Waudby-Smith & Ramdas, 2010.09686; here with a mixture of
    fixed stakes, which makes the order of the probes irrelevant).

    Every probe evaluation uses the same probes, so evaluations are not independent evidence, and
    their wealth may not be multiplied. Instead α is split over the behaviors of the run, and over
    its evaluations k as 1 / k(k + 1), which sums to 1. Whatever the dependence between evaluations,
    the probability of any false alert in a run is then at most α (ours). This is exact for
    evaluations at steps fixed in advance and a given scale; a monitor chooses the steps, and there
    the rate is measured.

    The test is about the mean of the declines clipped to `tolerated` ± `clip`, over the population
    from which the probes were drawn: large rises of a few probes cannot hide that most fall.

    Attributes:
        alpha: probability of a false alert in a run, over all behaviors and evaluations.
        of: test the decline of the margin, as a fraction of the mean margin at the start, or of the
            score.
        tolerated, clip: in the same unit.
    """

    kind: Literal["betting"] = "betting"
    alpha: float = Field(default=0.05, gt=0, lt=1)
    of: Literal["margin", "score"] = "margin"
    tolerated: float = Field(default=0.05, ge=0)
    clip: float = Field(default=0.1, gt=0)

    @property
    def alert_threshold(self) -> float:
        """0: the wealth equals its critical value."""
        return 0.0

    def input_signal(self) -> str:
        """Return `of`."""
        return self.of

    def message(self, history: BehaviorHistory, statistic: float) -> str:
        """Return the text of the alert: the mean decline, and the level of the test."""
        decline = float(self.declines(_first_and_last(history))[-1].mean())
        unit = "of the mean margin" if self.of == "margin" else "of the score"
        return (
            f"decline established at level {self.alpha:g}: {decline:.0%} {unit} is lost, more than "
            f"the tolerated {self.tolerated:.0%}"
        )

    def statistic(self, history: BehaviorHistory) -> np.ndarray:
        """Return log(wealth / critical value) after each probe evaluation; −inf at the start."""
        evaluations = np.arange(1, len(history.margins))
        wealth = log_wealth(self.declines(history), self.tolerated, self.clip)
        return np.concatenate(
            [[-np.inf], wealth[1:] - self._log_critical_wealth(evaluations, history)]
        )

    def latest(self, history: BehaviorHistory) -> float | None:
        """Return the last value of `statistic`, computed from the first and last margins only."""
        evaluation = len(history.margins) - 1
        if not evaluation:
            return -np.inf
        wealth = log_wealth(self.declines(_first_and_last(history)), self.tolerated, self.clip)
        return float(wealth[-1] - self._log_critical_wealth(evaluation, history))

    def _log_critical_wealth(self, evaluation: Any, history: BehaviorHistory) -> Any:
        return np.log(evaluation * (evaluation + 1) * history.n_behaviors / self.alpha)

    def min_probes(self, n_behaviors: int) -> int:
        """Return the smallest number of probes whose collapse the first test can detect."""
        growth = np.log1p(STAKES)[:, None] * np.arange(1, 1000)
        wealth = np.log(np.exp(growth - growth[-1]).mean(0)) + growth[-1]
        return int(np.argmax(wealth > np.log(2 * n_behaviors / self.alpha))) + 1

    def untestable_reason(self, history: BehaviorHistory) -> str:
        """See `Detector.untestable_reason`."""
        min_probes, n = self.min_probes(history.n_behaviors), len(history.margins[0])
        if n >= min_probes:
            return ""
        return (
            f"behavior {history.behavior!r} has {n} probes, and the betting test at level "
            f"{self.alpha:g} needs at least {min_probes}: it can raise no {self.level} "
            "for this behavior"
        )

    def declines(self, history: BehaviorHistory) -> np.ndarray:
        """Compute the decline of each probe since the start, shape (evaluations, n_probes)."""
        margins = np.array(history.margins)
        if self.of == "score":
            return (margins[0] > 0).astype(float) - (margins > 0)
        scale = margins[0].mean()
        return (margins[0] - margins) / scale if scale > 0 else np.zeros_like(margins)


def _first_and_last(history: BehaviorHistory) -> BehaviorHistory:
    """Return the history as if its first and last evaluation were the only ones."""
    margins = [history.margins[0], history.margins[-1]]
    return BehaviorHistory(history.behavior, history.floor, margins=margins)


def log_wealth(declines: np.ndarray, tolerated: float, clip: float) -> np.ndarray:
    """Compute the log of the wealth after all probes, averaged over stakes; (evaluations,).

    With u = `scaled` = (clipped decline − tolerated + clip) / 2·clip in [0, 1] the null hypothesis
    is that the mean of u is at most ½. A stake λ < 2 multiplies the wealth by 1 + λ(u − ½) ≥ 0.

    Args:
        declines: shape (evaluations, n_probes).
    """
    scaled = (np.clip(declines, tolerated - clip, tolerated + clip) - tolerated + clip) / (2 * clip)
    log_growth = np.log1p(2 * STAKES[:, None, None] * (scaled - 0.5)).sum(-1)
    largest = log_growth.max(0)
    return largest + np.log(np.exp(log_growth - largest).mean(0))
