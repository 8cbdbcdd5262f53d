"""Slope: the honest rival, which extrapolates realised margins and needs no gradient."""

from __future__ import annotations

from typing import Literal

import numpy as np

from riprap.detectors._forecast import ForecastDetector
from riprap.detectors._history import Track
from riprap.detectors._trend import realised_changes


class SlopeDetector(ForecastDetector):
    """As the forecast, from forward passes alone."""

    kind: Literal["slope"] = "slope"  # type: ignore[assignment]

    def changes(self, track: Track, values: np.ndarray) -> np.ndarray:
        """Change of a deciding margin in each step, spread evenly between visits."""
        return realised_changes(track, values)
