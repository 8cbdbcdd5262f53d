"""Predictions before training: what a data set will do to the behaviors of a model.

- `preflight`: predict it, after a short warm start on a copy of the model; also `riprap.preflight`.
- `Preflight`, `BehaviorPrediction`, `Outlook`: the result.
- `Predictor`, `Training`: the same with a training step of your own, as `riprap preflight` has.
"""

from riprap.prediction._predictor import DEFAULT_CHECKPOINTS, DEFAULT_WARM_STEPS, Predictor
from riprap.prediction._preflight import DEFAULT_ROWS, preflight
from riprap.prediction._result import BehaviorPrediction, Outlook, Preflight
from riprap.prediction._training import Training

__all__ = [
    "DEFAULT_CHECKPOINTS",
    "DEFAULT_ROWS",
    "DEFAULT_WARM_STEPS",
    "BehaviorPrediction",
    "Outlook",
    "Predictor",
    "Preflight",
    "Training",
    "preflight",
]
