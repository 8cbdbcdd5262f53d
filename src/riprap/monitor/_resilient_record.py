"""The monitor's access to its record: writing may fail without ending the run or the watch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from riprap._text import error_text
from riprap._warnings import warn
from riprap.errors import ConfigError, RecordError
from riprap.monitor._run_metadata import now
from riprap.record import Writer
from riprap.types import RUN, Action, Alert, Reading, ReadingStatus


class ResilientRecord:
    """Writer of a record that retries later what it cannot write now, and drops nothing.

    Args:
        writer: the record's writer.
    """

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self._written_id: str | None = None  # of the run whose metadata were written here
        self._has_backlog = False  # writing failed, and the user was warned

    def add_readings(self, readings: Iterable[Reading]) -> None:
        """Append readings."""
        self._write(lambda: self.writer.add_readings(readings))

    def add_failure(self, step: int, observer: str, error: Exception) -> None:
        """Append an `ERROR` reading, and warn: an observer failed, and training goes on."""
        text = error_text(error)
        self.add_readings([Reading(step, RUN, observer, state=ReadingStatus.ERROR, detail=text)])
        warn(f"{observer} failed at step {step}: {text}")

    def add_margins(self, step: int, behavior: str, margins: np.ndarray) -> None:
        """Append the margins of all probes of a behavior, shape (n_probes,)."""
        self.writer.add_margins(step, behavior, margins)

    def add_alert(self, alert: Alert) -> None:
        """Append an alert and commit immediately."""
        self._write(lambda: self.writer.add_alert(alert))

    def add_actions(self, actions: Iterable[Action]) -> None:
        """Append actions of a guard; committed with the next readings."""
        for action in actions:
            self.writer.add_action(action)

    def add_event(self, step: int, kind: str, facts: dict[str, Any]) -> None:
        """Append an event; committed with the next readings."""
        self.writer.add_event(step, kind, **facts)

    def commit(self) -> None:
        """Commit what is pending."""
        self._write(self.writer.flush)

    def end(self, step: int) -> None:
        """Append the event `ended`, commit, and release the record to other writers."""
        self.writer.add_event(step, "ended", ended=now())
        self._write(self.writer.release)

    def run_id(self) -> str | None:
        """Return the id of the record's run; None before it begins."""
        return self.writer.read_meta().get("id")

    def begin(
        self,
        step: int,
        position: dict[str, int],
        metadata: dict[str, Any],
        state_id: str | None = None,
    ) -> None:
        """Write the run's metadata; if the record already has them, continue it instead.

        Args:
            step, position: where to continue; see `Writer.position`.
            state_id: id of the run of the state that is resumed from; None: there is no state.

        Raises:
            ConfigError: the record is of another run.
            RecordError: the record cannot be written.
        """
        known = self.writer.read_meta()
        if "behaviors" not in known:
            origin = {} if state_id is None else {"continues": state_id}
            self.writer.write_meta(**metadata, **origin)
            self._written_id = metadata["id"]
            return
        if known.get("id") == self._written_id and step == 0:  # of a start that was refused
            self.writer.resume_from(step, position, versions=metadata["versions"], at=now())
            return
        if not self.writer.resume:  # another monitor has written it since this one was created
            self.writer.refuse_to_continue()
        for key in ("behaviors", "protocol_hash"):
            if not _equal(known[key], metadata[key]):
                raise ConfigError(
                    f"the record {self.writer.path} is of a run with other {key}: give another "
                    "run_dir, or create the monitor with the same arguments"
                )
        if state_id not in (None, known.get("id")):
            raise ConfigError(
                f"the monitor's state is of another run than the record {self.writer.path}: resume "
                "from a checkpoint of this record's run, or give another run_dir"
            )
        if "id" not in known:
            self.writer.write_meta(id=metadata["id"])
        self.writer.resume_from(step, position, versions=metadata["versions"], at=now())

    def _write(self, write: Callable[[], None]) -> None:
        try:
            write()
        except RecordError as error:
            if not self._has_backlog:  # one warning until writing succeeds again
                self._has_backlog = True
                warn(f"{error}; training goes on, and the rows are written later")
            self._has_backlog = True
        else:
            self._has_backlog = self._has_backlog and self.writer.has_backlog


def _equal(known: Any, given: Any) -> bool:
    """Compare facts of two runs; the texts of behaviors only if both runs record texts."""
    if known == given or not (isinstance(known, list) and isinstance(given, list)):
        return bool(known == given)
    plain = [
        [{key: value for key, value in own.items() if key != "texts"} for own in behaviors]
        for behaviors in (known, given)
    ]
    recorded = [any("texts" in own for own in behaviors) for behaviors in (known, given)]
    return plain[0] == plain[1] and not all(recorded)
