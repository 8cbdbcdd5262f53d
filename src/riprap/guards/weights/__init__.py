"""Weight guards: restrict or reset the weights themselves.

- `Freeze`: keep parts of the model unchanged; `Clip`: limit the norm of the gradient.
- `EMA`: reset the weights to their running average at intervals.
- `Rollback`: restore the last healthy state after an alert.
"""

from riprap.guards.weights._clip import Clip
from riprap.guards.weights._ema import EMA
from riprap.guards.weights._freeze import Freeze
from riprap.guards.weights._rollback import Rollback

__all__ = ["EMA", "Clip", "Freeze", "Rollback"]
