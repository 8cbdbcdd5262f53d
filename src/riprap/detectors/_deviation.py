"""Deviation: z-score of a signal against its own first values."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from riprap.detectors._history import BehaviorHistory
from riprap.detectors._sequential import Sequential, current_readings, current_series


class Deviation(Sequential):
    """z-score against the first values; "spectral entropy z < −2" is the usual instance.

    A baseline for comparisons. It learns from the `first` probe evaluations, and each later one is
    another chance to exceed z: the false-alarm rate is not controlled.

    Attributes:
        signal: name of a reading.
        side: side on which a deviation counts.
        z: threshold, in standard deviations.
        first: number of probe evaluations from which mean and standard deviation are estimated.
    """

    kind: Literal["deviation"] = "deviation"
    signal: str
    side: Literal["below", "above"] = "below"
    z: float = Field(default=2.0, gt=0)
    first: int = Field(default=8, ge=3)
    description: ClassVar[str] = "standard deviations away from its first values"

    @property
    def alert_threshold(self) -> float:
        """The threshold `z`."""
        return self.z

    def input_signal(self) -> str:
        """Return `signal`."""
        return self.signal

    def statistic(self, history: BehaviorHistory) -> np.ndarray:
        """Return z on the side that counts, after each evaluation; −inf for the first ones."""
        values = current_series(history, self.signal)
        if len(values) <= self.first:
            return np.zeros(0)
        z = self._z(values[: self.first], values)
        z[: self.first] = -np.inf
        return z

    def latest(self, history: BehaviorHistory) -> float | None:
        """Return the last value of `statistic`, computed from the first values and the last."""
        readings = current_readings(history, self.signal)
        if len(readings) <= self.first:
            return None
        first = np.array([value for _, value in readings[: self.first]])
        return float(self._z(first, np.array([readings[-1][1]]))[0])

    def _z(self, first: np.ndarray, values: np.ndarray) -> np.ndarray:
        sign = -1.0 if self.side == "below" else 1.0
        spread = max(float(first.std(ddof=1)), np.finfo(float).tiny)
        return sign * (values - first.mean()) / spread
