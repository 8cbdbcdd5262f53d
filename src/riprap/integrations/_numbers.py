"""Numbers between a monitor and the trackers of a trainer."""

from __future__ import annotations

from typing import Any

from riprap._checks import is_number
from riprap.monitor import Monitor


def as_number(value: Any) -> float | None:
    """Return a number, or the one number in a tensor, as a float; None for anything else."""
    if getattr(value, "shape", None) is not None:
        if any(size != 1 for size in value.shape):
            return None
        value = value.item()
    return float(value) if is_number(value) else None


class NewNumbers:
    """Scores and margins that were not asked for before."""

    def __init__(self) -> None:
        self._seen: object = None

    def of(self, monitor: Monitor) -> dict[str, float]:
        """Return `monitor.metrics()` if the probes were evaluated since the last call; else {}."""
        histories = monitor.behavior_histories.values()
        # After a rollback a step is evaluated again, and earlier steps are forgotten.
        numbers = monitor.metrics()
        marks = [(id(history), len(history.steps)) for history in histories], numbers
        if marks == self._seen:
            return {}
        self._seen = marks
        return numbers
