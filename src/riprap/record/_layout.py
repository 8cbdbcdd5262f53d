"""Layout of a record on disk: its file, its tables, and the triggers that make it append-only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from riprap.errors import RecordError

VERSION = 2
READABLE_VERSIONS = ("1", "2")  # version 1 had no events, and no rows in `actions`
FILE_NAME = "record.sqlite"
LOCK_NAME = "record.lock"
MAX_DEPTH = 4  # of folders below one in which runs are looked for
MAX_NAMED = 5  # runs that a message names

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE readings (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, behavior TEXT NOT NULL,
  signal TEXT NOT NULL, value REAL, unit TEXT NOT NULL, state TEXT NOT NULL,
  layer TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TABLE margins (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, behavior TEXT NOT NULL,
  margins BLOB NOT NULL);
CREATE TABLE alerts (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, behavior TEXT NOT NULL,
  level TEXT NOT NULL, detector TEXT NOT NULL, message TEXT NOT NULL, readings TEXT NOT NULL,
  forecast TEXT);
CREATE TABLE actions (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, guard TEXT NOT NULL,
  moment TEXT NOT NULL, applied INTEGER NOT NULL, detail TEXT NOT NULL, facts TEXT NOT NULL);
CREATE TABLE events (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, kind TEXT NOT NULL,
  facts TEXT NOT NULL);
CREATE TABLE superseded (id INTEGER PRIMARY KEY, name TEXT NOT NULL, after INTEGER NOT NULL,
  until INTEGER NOT NULL);
"""
LOGS = ("readings", "margins", "alerts", "actions")  # tables that a resumed run continues
_KEYS = {"meta": "key"} | dict.fromkeys((*LOGS, "events", "superseded"), "id")
# REPLACE deletes the old row without firing a delete trigger, so it needs a trigger of its own.
_APPEND_ONLY = """
CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table}
BEGIN SELECT RAISE(ABORT, 'the record is append-only'); END;
CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table}
BEGIN SELECT RAISE(ABORT, 'the record is append-only'); END;
CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table}
WHEN EXISTS (SELECT 1 FROM {table} WHERE {key} = NEW.{key})
BEGIN SELECT RAISE(ABORT, 'the record is append-only'); END;
"""


def creation_script() -> str:
    """Return the SQL that creates an empty record in one transaction."""
    triggers = [_APPEND_ONLY.format(table=table, key=key) for table, key in _KEYS.items()]
    version = f"INSERT INTO meta VALUES ('format_version', '{VERSION}');"
    return "BEGIN;" + _SCHEMA + "".join(triggers) + version + "COMMIT;"


def locate_record(path: str | Path) -> Path:
    """Return the record file of a run's folder; `path` may also be the file itself.

    Raises:
        RecordError: there is no record.
    """
    file = Path(path)
    try:
        file = file / FILE_NAME if file.is_dir() else file
        exists = file.is_file()
    except OSError as error:  # the name is too long, or the folder may not be entered
        raise RecordError(f"cannot look for a record at {path}: {error.strerror}") from error
    if not exists:
        raise RecordError(f"no record at {path}: {_expected(Path(path))}")
    return file


def _expected(path: Path) -> str:
    """Say what would be right: one of the runs below a folder, if there are any."""
    runs = [str(file.parent) for file in islice(records_below(path), MAX_NAMED + 1)]
    if not runs:
        return f"expected a run's folder that holds {FILE_NAME}"
    if len(runs) == 1:
        return f"name the run below it: {runs[0]}"
    more = ", and more" if len(runs) > MAX_NAMED else ""
    return f"name one of the runs below it: {', '.join(sorted(runs[:MAX_NAMED]))}{more}"


def records_below(folder: Path) -> Iterator[Path]:
    """Yield the record files in a folder and in those below it, a few folders deep."""
    for place, folders, files in os.walk(folder) if folder.is_dir() else ():
        if FILE_NAME in files:
            yield Path(place) / FILE_NAME
            folders.clear()  # checkpoints lie below a run
        if len(Path(place).relative_to(folder).parts) >= MAX_DEPTH:
            folders.clear()


def sqlite_uri(file: Path, brief: bool = False) -> str:
    """Return the URI under which SQLite opens the file for reading.

    A closed record has no write-ahead log and is safe to open as immutable, which creates no files
    beside it. This is done for a `brief` access, and where the folder is not writable (a
    colleague's, an archive), because SQLite could not create a log there.
    """
    log = file.with_name(file.name + "-wal")
    closed = not log.exists() and (brief or not os.access(file.parent, os.W_OK))
    return f"{file.absolute().as_uri()}?mode=ro" + "&immutable=1" * closed
