"""From a configuration file to a watched fine-tuning run (`riprap watch`)."""

from riprap.commands.watch._build import _field, fingerprint, keep_passing, load_model, load_rows
from riprap.commands.watch._config import DataConfig, LoraConfig, WatchConfig
from riprap.commands.watch._live import live_table, outcome, rows
from riprap.commands.watch._resume import TRAINER
from riprap.commands.watch._run import Prepared, Show, adapter, arguments, prepare, watched_run

__all__ = [
    "TRAINER",
    "DataConfig",
    "LoraConfig",
    "Prepared",
    "Show",
    "WatchConfig",
    "_field",
    "adapter",
    "arguments",
    "fingerprint",
    "keep_passing",
    "live_table",
    "load_model",
    "load_rows",
    "outcome",
    "prepare",
    "rows",
    "watched_run",
]
