"""Detectors: each turns the history of a behaviour into alerts."""

from riprap.detectors._base import Detector
from riprap.detectors._betting_test import BettingTest
from riprap.detectors._calibrate import calibrate, false_alarms, largest_decline, null_histories
from riprap.detectors._cumulative import CUSUM, PageHinkley
from riprap.detectors._deviation import Deviation
from riprap.detectors._forecast import ForecastDetector
from riprap.detectors._history import BehaviorHistory, threshold_margin, score
from riprap.detectors._policy import AlertPolicy, AnyDetector
from riprap.detectors._reevaluate import reevaluate, history_from_record
from riprap.detectors._sequential import Sequential
from riprap.detectors._slope import SlopeDetector
from riprap.detectors._threshold import Threshold

__all__ = [
    "CUSUM",
    "AlertPolicy",
    "AnyDetector",
    "BettingTest",
    "Detector",
    "Deviation",
    "ForecastDetector",
    "PageHinkley",
    "Sequential",
    "SlopeDetector",
    "Threshold",
    "BehaviorHistory",
    "calibrate",
    "false_alarms",
    "reevaluate",
    "largest_decline",
    "threshold_margin",
    "null_histories",
    "history_from_record",
    "score",
]
