"""Slope: the honest rival, which extrapolates realised margins and needs no gradient."""

from __future__ import annotations

from typing import Literal

import numpy as np

from riprap.detectors._forecast import ForecastDetector
from riprap.detectors._history import BehaviorHistory
from riprap.detectors._trend import realized_changes


class SlopeDetector(ForecastDetector):
    """As the forecast, from forward passes alone."""

    kind: Literal["slope"] = "slope"  # type: ignore[assignment]

    def changes(self, track: BehaviorHistory, values: np.ndarray) -> np.ndarray:
        """Change of a deciding margin in each step, spread evenly between visits."""
        return realized_changes(track, values)
