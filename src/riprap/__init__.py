"""Riprap: see which behaviours of a model its further training is about to wash away."""

from riprap import diagnosis, guards, selection
from riprap.behaviors import Behavior, Margins, packs
from riprap.detectors import Protocol
from riprap.evidence import Alert, EvidenceState, Forecast, Level, Reading, RiprapError
from riprap.monitor import Monitor

__version__ = "0.1.0"

__all__ = [
    "Alert",
    "Behavior",
    "EvidenceState",
    "Forecast",
    "Level",
    "Margins",
    "Monitor",
    "Protocol",
    "Reading",
    "RiprapError",
    "diagnosis",
    "guards",
    "packs",
    "selection",
]
