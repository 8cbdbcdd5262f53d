"""From a configuration file to a watched fine-tuning run (`riprap watch`)."""

from riprap.launch.config import WatchConfig
from riprap.launch.run import Prepared, prepare, watched_run

__all__ = ["Prepared", "WatchConfig", "prepare", "watched_run"]
