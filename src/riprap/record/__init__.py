"""The run record: an append-only event log; everything else is a view of it.

A single SQLite file in WAL mode. One process writes, any number read; what was committed survives
the death of the writer.
"""

from riprap.record.history import table
from riprap.record.layout import FILE_NAME, locate
from riprap.record.reader import Reader
from riprap.record.state import load_state, save_state
from riprap.record.writer import Writer, vacant

__all__ = ["FILE_NAME", "Reader", "Writer", "load_state", "locate", "save_state", "table", "vacant"]
