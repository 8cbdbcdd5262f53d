"""`riprap diagnose`: compare a fine-tuned model with its base, and try repairs."""

from riprap.commands.diagnose._config import DiagnoseConfig
from riprap.commands.diagnose._run import diagnose

__all__ = ["DiagnoseConfig", "diagnose"]
