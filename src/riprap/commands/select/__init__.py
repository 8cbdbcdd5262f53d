"""Select rows of a data set before training (`riprap select`)."""

from riprap.commands.select._config import SelectConfig
from riprap.commands.select._run import select_rows

__all__ = ["SelectConfig", "select_rows"]
