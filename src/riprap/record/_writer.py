"""Writing a record: buffered, one writer at a time, rows never changed or deleted."""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakValueDictionary

import numpy as np

from riprap.errors import RecordError
from riprap.record._layout import FILE_NAME, LOCK_NAME, LOGS, VERSION, creation_script, sqlite_uri
from riprap.record._rows import (
    ACTION_COLUMNS,
    ALERT_COLUMNS,
    READING_COLUMNS,
    action_to_row,
    alert_to_row,
    error_reading,
    facts_to_json,
    reading_to_row,
)
from riprap.types import Action, Alert, Reading

FLUSH_SECONDS = 0.5
BUSY_SECONDS = 0.2  # how long to wait for another process's lock on the file
MAX_WAIT_SECONDS = 60.0  # between attempts, while the disk is full or the file locked
EXAMPLE_TIME = "20260131-235959"

_INSERT_READING = f"INSERT INTO readings ({READING_COLUMNS}) VALUES (?,?,?,?,?,?,?,?)"
_ROW_ERRORS = (  # errors of one row; all others are errors of the file or the disk
    *(sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError),
    *(OverflowError, TypeError, ValueError),
)


_HOLDERS: WeakValueDictionary[Path, Writer] = WeakValueDictionary()  # of locks in this process


class Writer:
    """Writer that appends to a record. Rows are buffered for at most half a second.

    It holds a lock against other writers from its first commit until `release` or `close`.

    Args:
        folder: the run's folder, created if missing; `{time}` in it becomes the present time, as
            in 20260131-235959. None keeps the record in memory.
        resume: continue the record that the folder may already hold. Without it, a record of a
            run without any step is replaced.

    Raises:
        RecordError: the folder already holds a record of a run with steps and `resume` is False,
            the record has another version, it cannot be written, or `resume` is True and the
            folder has `{time}` in its name.
    """

    def __init__(self, folder: str | Path | None = None, resume: bool = False) -> None:
        self.path = None if folder is None else expand_time(folder, resume) / FILE_NAME
        self.resume = resume
        self._pending: list[tuple[str, tuple[Any, ...]]] = []
        self._flushed = time.monotonic()
        self._wait = FLUSH_SECONDS
        self._step = 0  # of the latest row
        self._lock: sqlite3.Connection | None = None
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if _check_existing(self.path, resume):
                    _remove(self.path)
            self._open()
        except (OSError, sqlite3.Error, RecursionError, TypeError, ValueError) as error:
            # Beside errors of the disk: NUL in the path, and facts that are not JSON.
            raise RecordError(f"cannot write a record at {self.path}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: the file's path, or the content of a record in memory."""
        with suppress(RecordError):
            self.flush()
        content = self.connection.serialize() if self.path is None else None
        return {"path": self.path, "resume": self.resume, "step": self._step, "content": content}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.resume, self._step = state["path"], state["resume"], state["step"]
        self._pending, self._lock = [], None
        self._flushed, self._wait = time.monotonic(), FLUSH_SECONDS
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open(state["content"])
        except (OSError, sqlite3.Error) as error:
            raise RecordError(f"cannot write a record at {self.path}: {error}") from error

    def _open(self, content: bytes | None = None) -> None:
        self.connection = sqlite3.connect(
            self.path or ":memory:",
            isolation_level=None,
            check_same_thread=False,
            timeout=BUSY_SECONDS,
        )
        if content:
            self.connection.deserialize(content)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=NORMAL")
        if not self.connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            self.connection.executescript(creation_script())
        self._file = None if self.path is None else self.path.stat()

    def write_meta(self, **facts: Any) -> None:
        """Write facts about the run, each key once, and commit immediately.

        Raises:
            RecordError: a key is already written, or the disk is full.
        """
        known = self.read_meta()
        for key in facts:
            if key in known:
                raise RecordError(
                    f"the record {self.path} already holds {key!r} = {known[key]!r}: a fact is "
                    "written once and never changed"
                )
        rows = [(key, json.dumps(value, default=str)) for key, value in facts.items()]
        self._pending += [("INSERT INTO meta VALUES (?, ?)", row) for row in rows]
        self.flush()

    def read_meta(self) -> dict[str, Any]:
        """Return the facts about the run written so far."""
        self.flush()
        rows = self.connection.execute("SELECT key, value FROM meta").fetchall()
        return {key: json.loads(value) for key, value in rows}

    def add_event(self, step: int, kind: str, /, **facts: Any) -> None:
        """Append an event of the whole run, such as its end; see `facts_to_json`."""
        statement = "INSERT INTO events (step, kind, facts) VALUES (?,?,?)"
        try:
            row = (int(step), kind, facts_to_json(facts))
        except (RecursionError, TypeError, ValueError) as error:
            self._add_error(kind, error)
        else:
            self._pending.append((statement, row))

    def add_readings(self, readings: Iterable[Reading]) -> None:
        """Append readings; what is not a reading becomes an `ERROR` reading with the reason."""
        items = list(readings)
        for reading in items:
            self._add(_INSERT_READING, reading_to_row, reading)
        self._step = self._pending[-1][1][0] if items else self._step
        if time.monotonic() - self._flushed > self._wait:
            self.flush()

    def add_margins(self, step: int, behavior: str, margins: np.ndarray) -> None:
        """Append the margins of all probes of a behavior, shape (n_probes,)."""
        blob = np.asarray(margins, dtype="<f4").tobytes()
        statement = "INSERT INTO margins (step, behavior, margins) VALUES (?,?,?)"
        self._pending.append((statement, (int(step), behavior, blob)))

    def add_alert(self, alert: Alert) -> None:
        """Append an alert and commit immediately; a malformed one becomes an `ERROR` reading."""
        statement = f"INSERT INTO alerts ({ALERT_COLUMNS}) VALUES (?,?,?,?,?,?,?)"
        self._add(statement, alert_to_row, alert)
        self.flush()

    def add_action(self, action: Action) -> None:
        """Append a guard's action; a malformed one becomes an `ERROR` reading."""
        statement = f"INSERT INTO actions ({ACTION_COLUMNS}) VALUES (?,?,?,?,?,?)"
        self._add(statement, action_to_row, action)

    def _add(self, statement: str, to_row: Callable[[Any], tuple[Any, ...]], item: Any) -> None:
        try:
            self._pending.append((statement, to_row(item)))
        except Exception as error:  # noqa: BLE001 a detector or a guard may yield anything
            self._add_error(item, error)

    def _add_error(self, item: Any, error: Exception) -> None:
        row = reading_to_row(error_reading(item, self._step, error))
        self._pending.append((_INSERT_READING, row))

    @property
    def has_backlog(self) -> bool:
        """True if the last attempt to commit failed and rows are pending."""
        return bool(self._pending) and self._wait > FLUSH_SECONDS

    def position(self) -> dict[str, int]:
        """Commit pending rows, and return the id of the last row of each log."""
        with suppress(RecordError):
            self.flush()
        last = "SELECT coalesce(max(id), 0) FROM {}"
        return {log: self.connection.execute(last.format(log)).fetchone()[0] for log in LOGS}

    def resume_from(self, step: int, position: dict[str, int], **facts: Any) -> None:
        """Continue from `position`: rows written after it stay, marked as superseded.

        Raises:
            RecordError: the disk is full, or another process writes this record.
        """
        for log, until in self.position().items():
            after = position.get(log, 0)
            if until > after:
                statement = "INSERT INTO superseded (name, after, until) VALUES (?,?,?)"
                self._pending.append((statement, (log, after, until)))
        self.add_event(step, "resumed", **facts)
        self.flush()

    def flush(self) -> None:
        """Commit pending rows.

        Raises:
            RecordError: the disk is full, the file is locked or missing, or another process writes
                this record; no pending row is dropped.
        """
        self._flushed = time.monotonic()
        if not self._pending:
            return
        self._wait = min(2 * self._wait, MAX_WAIT_SECONDS)  # unless this attempt succeeds
        try:
            self._acquire_lock()
            self.connection.execute("BEGIN IMMEDIATE")
            for statement, row in self._pending:
                self._insert(statement, row)
            self.connection.execute("COMMIT")
        except BaseException as error:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise RecordError(f"cannot write to the record {self.path}: {error}") from error
            raise
        self._pending.clear()
        self._wait = FLUSH_SECONDS

    def _insert(self, statement: str, row: tuple[Any, ...]) -> None:
        """Insert a row; if SQLite refuses this row, insert an `ERROR` reading in its place."""
        try:
            self.connection.execute(statement, row)
        except _ROW_ERRORS as error:
            reading = error_reading(row, self._step, error)
            self.connection.execute(_INSERT_READING, reading_to_row(reading))

    def _acquire_lock(self) -> None:
        """Lock the lock file. The system releases it when the process dies, however it dies."""
        if self.path is None or self._lock is not None:
            return
        file = self.path.with_name(LOCK_NAME)
        self._lock = _lock(file)
        if self._lock is None:  # by a monitor of an interrupted training that nobody refers to?
            gc.collect()
            self._lock = _lock(file)
        if self._lock is None:
            raise RecordError(_locked(self.path))
        _HOLDERS[self.path.resolve()] = self
        if not self._is_in_place():
            self._unlock()
            raise RecordError(
                f"the record {self.path} was removed, or replaced by another monitor, while this "
                "monitor did not watch: create a new monitor"
            )

    def _is_in_place(self) -> bool:
        """Return whether the file is still the one that was opened; rows to another would go."""
        try:
            assert self.path is not None and self._file is not None
            return os.path.samestat(self.path.stat(), self._file)
        except FileNotFoundError:
            return False

    def refuse_to_continue(self) -> NoReturn:
        """Say that the record belongs to another run, or that another monitor is writing it.

        Raises:
            RecordError: always.
        """
        self._acquire_lock()
        self.release()
        raise _occupied(self.path)

    def release(self) -> None:
        """Commit, and release the record to other writers, also if that fails."""
        try:
            self.flush()
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            if self.path is not None:
                _HOLDERS.pop(self.path.resolve(), None)

    def close(self) -> None:
        """Commit and close the file."""
        self.release()
        self.connection.close()


def _lock(file: Path) -> sqlite3.Connection | None:
    """Lock a lock file until the connection is closed; None: it is locked already."""
    lock = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=0)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        lock.close()
        return None
    return lock


def expand_time(folder: str | Path, resume: bool = False) -> Path:
    """Return a folder with the present time in place of `{time}`; a new one each second.

    Raises:
        RecordError: a run is to be resumed, and a new folder holds none.
    """
    if resume and "{time}" in str(folder):
        raise RecordError(
            f"run_dir {str(folder)!r} is a new folder each time, and holds no run to resume: give "
            f"the folder of the run, such as {str(folder).replace('{time}', EXAMPLE_TIME)!r}"
        )
    return Path(str(folder).replace("{time}", time.strftime("%Y%m%d-%H%M%S")))


def _locked(path: Path) -> str:
    """Return the text for a record that is locked, with advice that fits."""
    if path.resolve() in _HOLDERS:
        return (
            f"an earlier monitor of this process still writes the record {path}, because its watch "
            "never ended: call end() on that monitor, or give another run_dir"
        )
    return (
        f"another monitor is writing the record {path}: wait for it to end, or give another run_dir"
    )


def _remove(path: Path) -> None:
    """Remove a record without any step, unless another monitor holds it.

    Raises:
        RecordError: another monitor is writing it.
    """
    lock = _lock(path.with_name(LOCK_NAME))
    if lock is None:
        raise RecordError(_locked(path))
    with closing(lock):
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def require_vacant(folder: str | Path) -> None:
    """Check that a new record can be created in a folder; create nothing.

    Raises:
        RecordError: the folder already holds a record with content, or cannot be written.
    """
    path = Path(folder) / FILE_NAME
    try:
        _check_existing(path, resume=False)
        parent = next(parent for parent in path.parents if parent.exists())
    except (OSError, sqlite3.Error) as error:
        raise RecordError(f"cannot write a record at {path}: {error}") from error
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise RecordError(f"cannot write a record at {path}: {parent} is not a writable folder")


def _occupied(path: Path | None) -> RecordError:
    """Return the error of a record that belongs to another run."""
    return RecordError(
        f"{path} already holds a record, and a record is never overwritten: give another "
        "run_dir, or continue this run with Monitor(..., resume=True) and a checkpoint; "
        "run_dir='runs/first-{time}' is a new folder each time"
    )


def _check_existing(path: Path, resume: bool) -> bool:
    """Check that an existing record may be continued, or replaced; return True for the latter."""
    if path.is_symlink():
        raise RecordError(f"{path} is a link to another file: give another run_dir")
    if not path.exists():
        return False
    # Not as immutable: what a killed process wrote may still be in the log beside the file.
    with closing(sqlite3.connect(sqlite_uri(path, brief=True), uri=True)) as file:
        if not file.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            return False  # the process that created it died before it wrote the tables
        facts = file.execute("SELECT key, value FROM meta").fetchall()
        known = {key: json.loads(value) for key, value in facts}
        has_steps = known.get("format_version") != VERSION or any(
            file.execute(f"SELECT 1 FROM {log} WHERE step > 0 LIMIT 1").fetchone()
            for log in (*LOGS, "events")
        )
    if not resume and not has_steps:
        return len(known) > 1  # of a run that ended before its first step
    if not resume:
        raise _occupied(path)
    if known.get("format_version") != VERSION:
        raise RecordError(
            f"{path} has record format {known.get('format_version')}; this Riprap continues only "
            f"format {VERSION}: give another run_dir"
        )
    return False
