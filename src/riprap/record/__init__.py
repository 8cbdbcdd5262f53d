"""The run record: an append-only event log; everything else is a view of it."""

from riprap.record.history import table
from riprap.record.store import FILE_NAME, Reader, Writer, locate

__all__ = ["FILE_NAME", "Reader", "Writer", "locate", "table"]
