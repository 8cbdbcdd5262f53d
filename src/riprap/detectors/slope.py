"""Slope: the honest rival, which extrapolates realised margins and needs no gradient."""

from __future__ import annotations

from typing import Literal

import numpy as np

from riprap.detectors.forecast import ForecastDetector
from riprap.detectors.track import Track
from riprap.detectors.trend import realised_changes


class SlopeDetector(ForecastDetector):
    """As the forecast, from forward passes alone."""

    kind: Literal["slope"] = "slope"  # type: ignore[assignment]

    def changes(self, track: Track) -> np.ndarray:
        """Changes of the deciding margin by step, without interference."""
        return realised_changes(track)
