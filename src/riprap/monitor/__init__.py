"""The monitor: ties signals, detectors and record to a loop."""

from riprap.monitor._cost import Cost, measure_cost
from riprap.monitor._monitor import Monitor
from riprap.monitor._probe_schedule import GROWTH, PATIENCE, ProbeSchedule
from riprap.monitor._run_metadata import versions

__all__ = ["GROWTH", "PATIENCE", "ProbeSchedule", "Cost", "Monitor", "measure_cost", "versions"]
