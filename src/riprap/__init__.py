"""Riprap: early warning and protection against catastrophic forgetting during fine-tuning.

Names are imported on first use, so that `import riprap` is nearly free.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from riprap import detectors, diagnosis, guards, selection, signals
    from riprap.behaviors import Behavior, Margins, probe_sets
    from riprap.detectors import AlertPolicy
    from riprap.errors import RiprapError
    from riprap.monitor import Monitor
    from riprap.prediction import preflight
    from riprap.types import Alert, Forecast, Level, Reading, ReadingStatus

__version__ = "0.1.0"

__all__ = [
    "Alert",
    "AlertPolicy",
    "Behavior",
    "Forecast",
    "Level",
    "Margins",
    "Monitor",
    "Reading",
    "ReadingStatus",
    "RiprapError",
    "detectors",
    "diagnosis",
    "guards",
    "preflight",
    "probe_sets",
    "selection",
    "signals",
]

_MODULES = {"probe_sets": "behaviors.probe_sets"} | {
    name: name for name in ("detectors", "diagnosis", "guards", "selection", "signals")
}
_PACKAGES = {
    "AlertPolicy": "detectors",
    "Behavior": "behaviors",
    "Margins": "behaviors",
    "Monitor": "monitor",
    "RiprapError": "errors",
    "preflight": "prediction",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{_MODULES[name]}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PACKAGES.get(name, 'types')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
