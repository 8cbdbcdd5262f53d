"""Slope: the baseline forecast, which extrapolates measured margins and needs no gradient."""

from __future__ import annotations

from typing import Literal

import numpy as np

from riprap.detectors._forecast import ForecastDetector
from riprap.detectors._history import BehaviorHistory
from riprap.detectors._trend import realized_changes


class SlopeDetector(ForecastDetector):
    """`ForecastDetector` that uses forward passes only."""

    kind: Literal["slope"] = "slope"  # type: ignore[assignment]

    def changes(self, history: BehaviorHistory, threshold_margins: np.ndarray) -> np.ndarray:
        """Return the change in each step, the same for all steps between two evaluations."""
        return realized_changes(history, threshold_margins)
