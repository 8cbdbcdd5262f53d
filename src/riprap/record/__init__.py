"""The run record: an append-only event log; everything else is a view of it.

A single SQLite file in WAL mode. One process writes, any number read; what was committed survives
the death of the writer.
"""

from riprap.record._history import table
from riprap.record._layout import FILE_NAME, LOGS, locate
from riprap.record._reader import FLOOR, Reader
from riprap.record._rows import alert_of, alert_row, forecast_of, forecast_text
from riprap.record._state import load_state, save_state
from riprap.record._writer import Writer, vacant

__all__ = [
    "FILE_NAME",
    "FLOOR",
    "LOGS",
    "Reader",
    "Writer",
    "alert_of",
    "alert_row",
    "forecast_of",
    "forecast_text",
    "load_state",
    "locate",
    "save_state",
    "table",
    "vacant",
]
