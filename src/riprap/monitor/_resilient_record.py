"""What a monitor writes down: a record that may fail without the run, or the watch, failing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from riprap.errors import ConfigError, RecordError
from riprap.monitor._run_metadata import now
from riprap.record import Writer
from riprap.types import Action, Alert, Reading


class ResilientRecord:
    """Writes to a record; what it cannot take now it takes later, and nothing is dropped.

    Args:
        record: where to write.
    """

    def __init__(self, record: Writer) -> None:
        self.record = record
        self._has_backlog = False  # the record could not be written, and that was said

    def readings(self, readings: Iterable[Reading]) -> None:
        """Append readings."""
        self._write(lambda: self.record.readings(readings))

    def margins(self, step: int, behavior: str, margins: np.ndarray) -> None:
        """Append the margins of all probes of a behaviour, shape (n_probes,)."""
        self.record.margins(step, behavior, margins)

    def alert(self, alert: Alert) -> None:
        """Append an alert, and commit at once."""
        self._write(lambda: self.record.alert(alert))

    def actions(self, actions: Iterable[Action]) -> None:
        """Append what a guard did; committed with the next readings."""
        for action in actions:
            self.record.action(action)

    def event(self, step: int, kind: str, facts: dict[str, Any]) -> None:
        """Append what others did to the run; committed with the next readings."""
        self.record.event(step, kind, **facts)

    def end(self, step: int) -> None:
        """Say that the watch has ended, commit, and let other writers in."""
        self.record.event(step, "ended", ended=now())
        self._write(self.record.release)

    def begin(
        self, step: int, position: dict[str, int], facts: dict[str, Any], notes: dict[str, Any]
    ) -> None:
        """Say in the record what run it is; where it says so already, that the run goes on.

        Args:
            step, position: where it goes on from; see `Writer.position`.

        Raises:
            ConfigError: the record is of another run.
            RecordError: the record cannot be written.
        """
        known = self.record.read_meta()
        if "behaviors" not in known:
            self.record.meta(**facts, **notes)
            return
        for what in ("behaviors", "protocol_hash"):
            if known[what] != facts[what]:
                raise ConfigError(
                    f"the record {self.record.path} is of a run with other {what}: name another "
                    "run, or make the monitor as it was made before"
                )
        self.record.resume_from(step, position, versions=facts["versions"], at=now())

    def _write(self, write: Callable[[], None]) -> None:
        try:
            write()
        except RecordError as error:
            if not self._has_backlog:  # said once, until it can be written again
                text = f"riprap: {error}; training goes on, and so does the watch"
                warnings.warn(text, stacklevel=4)
            self._has_backlog = True
        else:
            self._has_backlog = self._has_backlog and self.record.has_backlog
