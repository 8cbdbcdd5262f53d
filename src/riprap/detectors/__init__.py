"""Detectors: each turns the history of a behaviour into alerts."""

from riprap.detectors.base import Detector
from riprap.detectors.betting import Betting
from riprap.detectors.cumulative import CUSUM, PageHinkley
from riprap.detectors.deviation import Deviation
from riprap.detectors.forecast import ForecastDetector
from riprap.detectors.protocol import Protocol
from riprap.detectors.slope import SlopeDetector
from riprap.detectors.threshold import Threshold
from riprap.detectors.track import Track

__all__ = [
    "CUSUM",
    "Betting",
    "Detector",
    "Deviation",
    "ForecastDetector",
    "PageHinkley",
    "Protocol",
    "SlopeDetector",
    "Threshold",
    "Track",
]
