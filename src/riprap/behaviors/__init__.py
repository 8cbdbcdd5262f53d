"""Behaviours: probes, margins by kind, and packs of authored probes."""

from riprap.behaviors.behavior import Behavior
from riprap.behaviors.margins import Margins

__all__ = ["Behavior", "Margins"]
