"""Deviation: a signal so many standard deviations away from its own first visits."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from riprap.detectors._history import BehaviorHistory
from riprap.detectors._sequential import Sequential, current_series


class Deviation(Sequential):
    """z-score against the first visits; "spectral entropy z < −2" is the usual instance.

    A baseline for tables: with `first` visits to learn from, and every later visit a new chance to
    be beyond z, it has no stated false-alarm rate.

    Attributes:
        signal: name of a reading.
        side: on which side a deviation counts.
        z: how many standard deviations.
        first: visits from which mean and standard deviation are taken.
    """

    kind: Literal["deviation"] = "deviation"
    signal: str
    side: Literal["below", "above"] = "below"
    z: float = Field(default=2.0, gt=0)
    first: int = Field(default=8, ge=3)
    description: ClassVar[str] = "standard deviations away from the first visits"

    @property
    def alert_threshold(self) -> float:
        """The z that counts."""
        return self.z

    def input_signal(self) -> str:
        """The signal."""
        return self.signal

    def statistic(self, track: BehaviorHistory) -> np.ndarray:
        """|z| on the side that counts, after each visit; −inf while it is learning."""
        values = current_series(track, self.signal)
        if len(values) <= self.first:
            return np.zeros(0)
        known = values[: self.first]
        sign = -1.0 if self.side == "below" else 1.0
        spread = max(float(known.std(ddof=1)), np.finfo(float).tiny)
        path = sign * (values - known.mean()) / spread
        path[: self.first] = -np.inf
        return path
