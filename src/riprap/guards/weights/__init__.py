from riprap.guards.weights._clip import Clip
from riprap.guards.weights._ema import EMA
from riprap.guards.weights._freeze import Freeze
from riprap.guards.weights._rollback import Rollback

__all__ = ["EMA", "Clip", "Freeze", "Rollback"]
