"""Detectors: each turns the history of a behaviour into alerts."""

from riprap.detectors._base import Detector
from riprap.detectors._betting_test import Betting
from riprap.detectors._calibrate import calibrated, false_alarms, largest_decline, null_tracks
from riprap.detectors._cumulative import CUSUM, PageHinkley
from riprap.detectors._deviation import Deviation
from riprap.detectors._forecast import ForecastDetector
from riprap.detectors._history import Track, low_margin, score
from riprap.detectors._policy import AlertPolicy, AnyDetector
from riprap.detectors._reevaluate import judge_again, rebuild
from riprap.detectors._sequential import Sequential
from riprap.detectors._slope import SlopeDetector
from riprap.detectors._threshold import Threshold

__all__ = [
    "CUSUM",
    "AlertPolicy",
    "AnyDetector",
    "Betting",
    "Detector",
    "Deviation",
    "ForecastDetector",
    "PageHinkley",
    "Sequential",
    "SlopeDetector",
    "Threshold",
    "Track",
    "calibrated",
    "false_alarms",
    "judge_again",
    "largest_decline",
    "low_margin",
    "null_tracks",
    "rebuild",
    "score",
]
