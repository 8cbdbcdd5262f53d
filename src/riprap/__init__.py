"""Riprap: see which behaviours of a model its further training is about to wash away."""

from riprap import diagnosis, guards, selection
from riprap.behaviors import Behavior, Margins
from riprap.behaviors import probe_sets as packs
from riprap.detectors import AlertPolicy
from riprap.errors import RiprapError
from riprap.monitor import Monitor
from riprap.types import Alert, Forecast, Level, Reading, ReadingStatus

__version__ = "0.1.0"

__all__ = [
    "Alert",
    "AlertPolicy",
    "Behavior",
    "Forecast",
    "Level",
    "Margins",
    "Monitor",
    "Reading",
    "ReadingStatus",
    "RiprapError",
    "diagnosis",
    "guards",
    "packs",
    "selection",
]
