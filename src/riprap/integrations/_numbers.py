"""Numbers of a monitor for a tracker: each probe evaluation once."""

from __future__ import annotations

from riprap.monitor import Monitor


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
