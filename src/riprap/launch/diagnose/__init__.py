"""What became of a model's behaviours since it was tuned, and what to do (`riprap diagnose`)."""

from riprap.launch.diagnose.config import DiagnoseConfig
from riprap.launch.diagnose.run import diagnose

__all__ = ["DiagnoseConfig", "diagnose"]
