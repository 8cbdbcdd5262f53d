"""Views of a record: figures, the HTML report, the live table in the terminal."""

from riprap.report.charts import lanes, save
from riprap.report.page import write_page
from riprap.report.terminal import LiveTable, Row

__all__ = ["LiveTable", "Row", "lanes", "save", "write_page"]
