"""`riprap diagnose`: compare a fine-tuned model with its base, and try repairs."""

# ruff: noqa: E402
from riprap._extras import EXTRAS, require

require("hf", *EXTRAS["hf"])

from riprap.commands.diagnose._config import DiagnoseConfig
from riprap.commands.diagnose._run import diagnose

__all__ = ["DiagnoseConfig", "diagnose"]
