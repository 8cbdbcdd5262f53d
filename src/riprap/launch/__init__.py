"""From a configuration file to a watched fine-tuning run (`riprap watch`)."""

from riprap.launch.config import WatchConfig
from riprap.launch.run import launch

__all__ = ["WatchConfig", "launch"]
