"""Monitors from configuration files, for `riprap watch` and for Axolotl.

- `MonitorConfig`, `BehaviorConfig`, `GuardConfig`, `SelectorConfig`: the keys.
- `check_monitor_config`, `build_monitor`: check a configuration, and build what it describes.
- `load_policy`, `build_behavior`, `check_behavior`, …: parts of both.
"""

from riprap.integrations.config._behaviors import (
    build_behavior,
    build_behaviors,
    check_behavior,
    check_behaviors,
    load_policy,
)
from riprap.integrations.config._build import build_monitor, check_monitor_config
from riprap.integrations.config._interventions import (
    build_guard,
    build_selector,
    check_guard,
    check_selector,
    guard_names,
)
from riprap.integrations.config._schema import (
    BehaviorConfig,
    GuardConfig,
    MonitorConfig,
    SelectorConfig,
)

__all__ = [
    "BehaviorConfig",
    "GuardConfig",
    "MonitorConfig",
    "SelectorConfig",
    "build_behavior",
    "build_behaviors",
    "build_guard",
    "build_monitor",
    "build_selector",
    "check_behavior",
    "check_behaviors",
    "check_guard",
    "check_monitor_config",
    "check_selector",
    "guard_names",
    "load_policy",
]
