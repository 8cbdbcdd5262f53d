"""Numbers that follow from a history's margins and readings, each computed once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

FROM_MARGINS = ("score", "margin", "margin_low")  # the signals that every history has

Series = list[tuple[int, float]]  # (step, value)


def threshold_rank(n: int, floor: float) -> int:
    """Return the rank of the threshold margin among n margins in ascending order, from 0.

    The score falls under the floor once more than (1 − floor)·n of the margins are at or below 0.
    """
    return min(int(np.floor((1 - floor) * n + 1e-9)), n - 1)


def threshold_margin(margins: np.ndarray, floor: float) -> float:
    """Compute the threshold margin: the (⌊(1 − floor)·n⌋ + 1)-th smallest.

    Its sign decides whether the score is under the floor.

    Args:
        margins: shape (n,).
        floor: a score in (0, 1].
    """
    rank = threshold_rank(len(margins), floor)
    return float(np.partition(margins, rank)[rank])


def score(margins: np.ndarray) -> float:
    """Compute the share of margins above 0."""
    return float((margins > 0).mean())


def fitted_trends(times: np.ndarray, margins: np.ndarray, own: float) -> np.ndarray:
    """Fit a line through the margins of each probe, drawn to the mean line.

    Trends of single probes are noisy; the mean trend is not.

    Args:
        times: of the evaluations, shape (evaluations,).
        margins: shape (evaluations, n_probes).
        own: weight of a probe's own trend; the rest is that of the mean trend.

    Returns:
        change per unit of time, shape (n_probes,).
    """
    centered = times - times.mean()
    trends = (centered @ margins) / (centered @ centered)
    found: np.ndarray = trends.mean() + own * (trends - trends.mean())
    return found


def time_to_floor(margins: np.ndarray, slopes: np.ndarray, floor: float) -> float:
    """Return when the score first falls under its floor if each margin moves along a line.

    Args:
        margins: shape (n_probes,).
        slopes: shape (n_probes,).

    Returns:
        `inf`: never; 0: it is under the floor already.
    """
    passes = margins > 0
    limit = np.floor((1 - floor) * len(margins) + 1e-9)
    if (~passes).sum() > limit:
        return 0.0
    # A probe that passes begins to fail, or the other way.
    turns = (passes == (slopes < 0)) & (slopes != 0)
    times = -margins[turns] / slopes[turns] if turns.any() else np.empty(0)
    changes = np.where(passes[turns], 1, -1)
    order = np.argsort(times, kind="stable")
    failing = (~passes).sum() + np.cumsum(changes[order])
    broken = np.flatnonzero(failing > limit)
    return float(times[order][broken[0]]) if len(broken) else float("inf")


@dataclass
class Derived:
    """Numbers that follow from a history; they grow with it, so that no step reads all of it.

    Attributes:
        series: (step, value) at the probe evaluations, by signal.
        peaks: largest threshold margin so far, and the last step at which it was reached; one for
            each evaluation.
        first_under: first step with a score under the floor.
        sums: running sums of detectors over the evaluations so far, under keys of their own.
    """

    series: dict[str, Series] = field(default_factory=lambda: {name: [] for name in FROM_MARGINS})
    peaks: Series = field(default_factory=list)
    first_under: int | None = None
    sums: dict[Any, Any] = field(default_factory=dict)
    _evaluated: set[int] = field(default_factory=set)
    _n_taken: dict[str, int] = field(default_factory=dict)  # readings, by signal
    _later: dict[str, Series] = field(default_factory=dict)  # those after the last evaluation

    def add_margins(self, steps: list[int], margins: list[np.ndarray], floor: float) -> None:
        """Add the evaluations that are new, given all of them."""
        for at in range(len(self.peaks), len(margins)):
            step, low = steps[at], threshold_margin(margins[at], floor)
            values = (score(margins[at]), float(np.mean(margins[at])), low)
            for name, value in zip(FROM_MARGINS, values, strict=True):
                self.series[name].append((step, value))
            is_peak = not self.peaks or low >= self.peaks[-1][1]
            self.peaks.append((step, low) if is_peak else self.peaks[-1])
            if values[0] < floor and self.first_under is None:
                self.first_under = step
            self._evaluated.add(step)

    def add_readings(self, signal: str, readings: Series) -> Series:
        """Add the readings of a signal that are new, given all of them; return its series.

        Readings between evaluations are left out, also those of per-step signals: so the series is
        the same live and from a record.
        """
        taken = self._n_taken.get(signal, 0)
        if not taken or taken > len(readings):
            self.series[signal], self._later[signal], taken = [], [], 0
            self.sums.clear()
        last = self.series["score"][-1][0] if self.peaks else -1
        later: Series = []
        for step, value in [*self._later[signal], *readings[taken:]]:
            if step in self._evaluated:
                self.series[signal].append((step, value))
            elif step > last:
                later.append((step, value))
        self._n_taken[signal], self._later[signal] = len(readings), later
        return self.series[signal]

    def truncated(self, count: int) -> Derived:
        """Return what follows from the first `count` evaluations."""
        kept = Derived({name: self.series[name][:count] for name in FROM_MARGINS})
        kept.peaks = self.peaks[:count]
        kept._evaluated = {step for step, _ in kept.series["score"]}
        if self.first_under in kept._evaluated:
            kept.first_under = self.first_under
        return kept


def fewest_rows_for(share: float, falls: np.ndarray) -> int | None:
    """Return how many rows, the worst first, do a share of the whole fall; None if nothing falls.

    Args:
        falls: fall of the mean margin by each row, negative where it rises, shape (rows,).
    """
    total = falls.sum()
    if total <= 0:
        return None
    return int(np.searchsorted(np.cumsum(np.sort(falls)[::-1]), share * total) + 1)
