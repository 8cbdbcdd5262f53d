"""The run record: an append-only event log; everything else is a view of it.

A single SQLite file in WAL mode. One process writes, any number read; what was committed survives
the death of the writer.
"""

from riprap.record._history import readings_table
from riprap.record._layout import FILE_NAME, LOGS, locate_record
from riprap.record._reader import DEFAULT_FLOOR, Reader
from riprap.record._rows import alert_from_row, alert_to_row, forecast_from_json, forecast_to_json
from riprap.record._state import load_state, save_state
from riprap.record._writer import Writer, require_vacant

__all__ = [
    "FILE_NAME",
    "DEFAULT_FLOOR",
    "LOGS",
    "Reader",
    "Writer",
    "alert_from_row",
    "alert_to_row",
    "forecast_from_json",
    "forecast_to_json",
    "load_state",
    "locate_record",
    "save_state",
    "readings_table",
    "require_vacant",
]
