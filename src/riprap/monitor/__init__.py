"""The monitor: ties signals, detectors and record to a loop."""

from riprap.monitor.monitor import Monitor

__all__ = ["Monitor"]
