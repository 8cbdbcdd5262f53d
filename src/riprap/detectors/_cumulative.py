"""Cumulative sums: CUSUM and Page-Hinkley on standardized readings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from riprap.detectors._history import BehaviorHistory
from riprap.detectors._sequential import Sequential, current_readings, current_series

Scale = Annotated[float, Field(gt=0)]


@dataclass
class RunningSum:
    """Running sum of falls minus an allowance, and its minimum so far (at most 0)."""

    count: int = 0
    falls: float = 0.0
    total: float = 0.0
    minimum: float = 0.0

    def add(self, fall: float, allowance: float, from_mean: bool) -> None:
        """Add a fall, or by how much it exceeds the mean of all falls."""
        self.count += 1
        self.falls += fall
        self.total += fall - (self.falls / self.count if from_mean else 0.0) - allowance
        self.minimum = min(self.minimum, self.total)


class Cumulative(Sequential):
    """Base of both: a signal, its noise scale, an allowance and a threshold.

    The sums run over probe evaluations, which are denser at the start and when it is urgent.

    Attributes:
        signal: name of a reading; the detector responds to falls.
        scale: standard deviation of the signal without an effect, for all behaviors or by behavior,
            as `riprap policy calibrate` estimates it from a null run. None (for "margin" only): the
            standard error of the mean margin over the probes at the start.
        allowance: deviation per probe evaluation that is not counted, in units of the scale.
        threshold: sum above which to alert, in units of the scale.
    """

    signal: str = "margin"
    scale: Scale | dict[str, Scale] | None = None
    allowance: float = Field(default=0.5, ge=0)
    threshold: float = Field(default=5.0, gt=0)
    from_running_mean: ClassVar[bool]

    @property
    def alert_threshold(self) -> float:
        """The field `threshold`."""
        return self.threshold

    def input_signal(self) -> str:
        """Return `signal`."""
        return self.signal

    def standardized_falls(self, history: BehaviorHistory) -> np.ndarray:
        """Return the fall since the start at each evaluation, in scales; empty without a scale."""
        values, scale = current_series(history, self.signal), self._scale(history)
        if not len(values) or not scale:
            return np.zeros(0)
        return (values[0] - values) / scale

    def _scale(self, history: BehaviorHistory) -> float | None:
        scale = self.scale
        if isinstance(scale, dict):
            scale = scale.get(history.behavior)
        if scale is None and self.signal == "margin":
            start = history.margins[0]
            scale = float(start.std(ddof=1) / np.sqrt(len(start))) if len(start) > 1 else None
        return scale

    def latest(self, history: BehaviorHistory) -> float | None:
        """Return the last value of `statistic`; only evaluations since the last call are added."""
        readings, scale = current_readings(history, self.signal), self._scale(history)
        if not readings or not scale:
            return None
        key = (self.kind, self.signal, scale, self.allowance)
        sums = history.derived.sums.setdefault(key, RunningSum())
        for _, value in readings[sums.count :]:
            sums.add((readings[0][1] - value) / scale, self.allowance, self.from_running_mean)
        return sums.total - sums.minimum


class CUSUM(Cumulative):
    """S ← max(0, S + z − allowance), z the standardized fall since the start (Page, 1954)."""

    kind: Literal["cusum"] = "cusum"
    from_running_mean: ClassVar[bool] = False
    description: ClassVar[str] = "cumulative sum of falls since the start"

    def statistic(self, history: BehaviorHistory) -> np.ndarray:
        """Return the sum after each probe evaluation."""
        return reflected_sum(self.standardized_falls(history) - self.allowance)


class PageHinkley(Cumulative):
    """CUSUM of falls below the running mean instead of the start (Hinkley, 1971)."""

    kind: Literal["page_hinkley"] = "page_hinkley"
    from_running_mean: ClassVar[bool] = True
    description: ClassVar[str] = "cumulative sum of falls below the running mean"

    def statistic(self, history: BehaviorHistory) -> np.ndarray:
        """Return the sum after each probe evaluation."""
        falls = self.standardized_falls(history)
        means = np.cumsum(falls) / np.arange(1, len(falls) + 1)
        return reflected_sum(falls - means - self.allowance)


def reflected_sum(steps: np.ndarray) -> np.ndarray:
    """Compute the running sum minus its minimum so far (at most 0); shape (evaluations,)."""
    sums = np.cumsum(steps)
    return sums - np.minimum(np.minimum.accumulate(sums), 0) if len(sums) else sums
