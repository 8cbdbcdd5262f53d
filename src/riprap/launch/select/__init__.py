"""Choosing rows of a data set before they are trained on (`riprap select`)."""

from riprap.launch.select.config import SelectConfig
from riprap.launch.select.run import select_rows

__all__ = ["SelectConfig", "select_rows"]
