"""Cumulative sums: CUSUM and Page-Hinkley on standardised readings."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from riprap.detectors._history import BehaviorHistory
from riprap.detectors._sequential import Sequential, current_series

Scale = Annotated[float, Field(gt=0)]


class Cumulative(Sequential):
    """What both have in common: a signal, its noise scale, an allowance and a bound.

    Sums run over visits, which are denser at the start and when it is urgent.

    Attributes:
        signal: name of a reading; a fall of it is looked for.
        scale: its standard deviation where nothing happens, for all behaviours or by behaviour, as
            `riprap protocol calibrate` takes it from a null run. None, for "margin" alone: the
            standard error of the mean margin over the probes at the start.
        allowance: what a visit may deviate without being counted, in scales.
        threshold: sum above which to alert, in scales.
    """

    signal: str = "margin"
    scale: Scale | dict[str, Scale] | None = None
    allowance: float = Field(default=0.5, ge=0)
    threshold: float = Field(default=5.0, gt=0)

    @property
    def alert_threshold(self) -> float:
        """The threshold."""
        return self.threshold

    def input_signal(self) -> str:
        """The signal."""
        return self.signal

    def standardized_falls(self, track: BehaviorHistory) -> np.ndarray:
        """Fall since the start at each visit, in scales; empty without a scale."""
        values = current_series(track, self.signal)
        own = self.scale
        scale = own.get(track.behavior) if isinstance(own, dict) else own
        if scale is None and self.signal == "margin":
            start = track.margins[0]
            scale = float(start.std(ddof=1) / np.sqrt(len(start))) if len(start) > 1 else None
        if not len(values) or not scale:
            return np.zeros(0)
        return (values[0] - values) / scale


class CUSUM(Cumulative):
    """S ← max(0, S + z − allowance), z the standardised fall since the start (Page, 1954)."""

    kind: Literal["cusum"] = "cusum"
    description: ClassVar[str] = "cumulative sum of falls since the start"

    def statistic(self, track: BehaviorHistory) -> np.ndarray:
        """The sum after each visit."""
        return reflected_sum(self.standardized_falls(track) - self.allowance)


class PageHinkley(Cumulative):
    """As CUSUM, but a fall is counted from the running mean, not from the start (Hinkley, 1971)."""

    kind: Literal["page_hinkley"] = "page_hinkley"
    description: ClassVar[str] = "cumulative sum of falls below the running mean"

    def statistic(self, track: BehaviorHistory) -> np.ndarray:
        """The sum after each visit."""
        falls = self.standardized_falls(track)
        means = np.cumsum(falls) / np.arange(1, len(falls) + 1)
        return reflected_sum(falls - means - self.allowance)


def reflected_sum(steps: np.ndarray) -> np.ndarray:
    """The running sum less its lowest value so far, 0 included; shape (visits,)."""
    sums = np.cumsum(steps)
    return sums - np.minimum(np.minimum.accumulate(sums), 0) if len(sums) else sums
