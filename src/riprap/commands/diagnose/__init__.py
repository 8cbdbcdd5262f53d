"""What became of a model's behaviours since it was tuned, and what to do (`riprap diagnose`)."""

from riprap.commands.diagnose._config import DiagnoseConfig
from riprap.commands.diagnose._run import diagnose

__all__ = ["DiagnoseConfig", "diagnose"]
