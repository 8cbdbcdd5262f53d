"""Predictions before training: what a data set will do to the behaviors of a model.

- `preflight`: predict it, after a short warm start on a copy of the model; also `riprap.preflight`.
- `Preflight`, `BehaviorPrediction`, `Outlook`: the result.
- `Predictor`, `Training`: the same with a training step of your own, as `riprap preflight` has.
- `Course`, `measured_slopes`, `time_to_floor`: the forecast of a break, from margins alone.
"""

from riprap.prediction._break_forecast import Course, measured_slopes, time_to_floor
from riprap.prediction._predictor import DEFAULT_CHECKPOINTS, DEFAULT_WARM_STEPS, Predictor
from riprap.prediction._preflight import DEFAULT_ROWS, preflight
from riprap.prediction._result import BehaviorPrediction, Outlook, Preflight
from riprap.prediction._training import Training

__all__ = [
    "DEFAULT_CHECKPOINTS",
    "DEFAULT_ROWS",
    "DEFAULT_WARM_STEPS",
    "BehaviorPrediction",
    "Course",
    "Outlook",
    "Predictor",
    "Preflight",
    "Training",
    "measured_slopes",
    "preflight",
    "time_to_floor",
]
