"""How a record lies on disk: its file, its tables, and what keeps them append-only."""

from __future__ import annotations

import os
from pathlib import Path

from riprap.errors import RecordError

VERSION = 2
READABLE_VERSIONS = ("1", "2")  # 1 had no events, and none of its actions was ever written
FILE_NAME = "record.sqlite"
LOCK_NAME = "record.lock"

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
LOGS = (
    "readings",
    "margins",
    "alerts",
    "actions",
)  # what a run that is taken up again goes on with
_KEYS = {"meta": "key"} | dict.fromkeys((*LOGS, "events", "superseded"), "id")
# REPLACE deletes the old row without firing a delete trigger, hence the third one.
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
    """SQL that makes an empty record, in one transaction."""
    triggers = [_APPEND_ONLY.format(table=table, key=key) for table, key in _KEYS.items()]
    version = f"INSERT INTO meta VALUES ('format_version', '{VERSION}');"
    return "BEGIN;" + _SCHEMA + "".join(triggers) + version + "COMMIT;"


def locate_record(path: str | Path) -> Path:
    """The record file that `path` names: a run's folder, or the file itself.

    Raises:
        RecordError: there is no record.
    """
    file = Path(path)
    try:
        file = file / FILE_NAME if file.is_dir() else file
        found = file.is_file()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise RecordError(f"cannot look for a record at {path}: {error.strerror}") from error
    if not found:
        raise RecordError(f"no record at {path}: expected a run's folder with {FILE_NAME} in it")
    return file


def sqlite_uri(file: Path, brief: bool = False) -> str:
    """The file as SQLite is to open it for reading.

    A closed record has no write-ahead log, and is safe to read as immutable, which leaves no files
    beside it. That is done for a `brief` look, and where the folder may not be written to (a
    colleague's, an archive): SQLite could not make a log there.
    """
    log = file.with_name(file.name + "-wal")
    closed = not log.exists() and (brief or not os.access(file.parent, os.W_OK))
    return f"{file.absolute().as_uri()}?mode=ro" + "&immutable=1" * closed
