"""Detectors: each turns the history of a behavior into alerts.

- `AlertPolicy`: detectors with their thresholds, frozen under a hash.
- `ForecastDetector`, `SlopeDetector`, `BettingTest`, `CUSUM`, `PageHinkley`, `Deviation`,
  `Threshold`: the detectors; `Detector` and `Sequential` are their bases.
- `BehaviorHistory`: the measurements that detectors read.
- `reevaluate`, `history_from_record`, `plans_from_record`: detectors on a recorded run.
- `calibrate`, `null_histories`, `false_alarms`: thresholds from null runs.
"""

from riprap.detectors._base import Detector
from riprap.detectors._betting_test import BettingTest
from riprap.detectors._calibrate import calibrate, false_alarms, largest_decline, null_histories
from riprap.detectors._cumulative import CUSUM, PageHinkley
from riprap.detectors._derived import (
    fewest_rows_for,
    fitted_trends,
    score,
    threshold_margin,
    time_to_floor,
)
from riprap.detectors._deviation import Deviation
from riprap.detectors._forecast import ForecastDetector, describe_broken
from riprap.detectors._history import BehaviorHistory
from riprap.detectors._policy import AlertPolicy, AnyDetector
from riprap.detectors._power import Power, score_interval
from riprap.detectors._probe_trend import ProbeTrend
from riprap.detectors._rate_schedule import RateSchedule
from riprap.detectors._reevaluate import (
    RATE_SUM,
    history_from_record,
    plans_from_record,
    reevaluate,
)
from riprap.detectors._sequential import Sequential
from riprap.detectors._slope import SlopeDetector
from riprap.detectors._threshold import Threshold

__all__ = [
    "CUSUM",
    "RATE_SUM",
    "AlertPolicy",
    "AnyDetector",
    "BehaviorHistory",
    "BettingTest",
    "Detector",
    "Deviation",
    "ForecastDetector",
    "PageHinkley",
    "Power",
    "ProbeTrend",
    "RateSchedule",
    "Sequential",
    "SlopeDetector",
    "Threshold",
    "calibrate",
    "describe_broken",
    "false_alarms",
    "fewest_rows_for",
    "fitted_trends",
    "history_from_record",
    "largest_decline",
    "null_histories",
    "plans_from_record",
    "reevaluate",
    "score",
    "score_interval",
    "threshold_margin",
    "time_to_floor",
]
