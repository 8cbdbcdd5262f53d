"""The monitor: ties signals, detectors and record to a loop."""

from riprap.monitor._cost import Cost, measure
from riprap.monitor._monitor import Monitor
from riprap.monitor._probe_schedule import GROWTH, PATIENCE, Cadence
from riprap.monitor._run_metadata import versions

__all__ = ["GROWTH", "PATIENCE", "Cadence", "Cost", "Monitor", "measure", "versions"]
