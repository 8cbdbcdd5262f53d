"""Following one record: a view of all of it, and small changes since."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from riprap._text import escape_control_chars, shorten
from riprap.dashboard._pages import pages_of
from riprap.dashboard._snapshot import conclusion_of, new_rows, opened, whole
from riprap.errors import RecordError
from riprap.evals import evals_of
from riprap.record import Reader, position, state_of_results

SETTLED_SECONDS = 2.0  # a file that was written more recently is read even if it looks the same
MAX_CHANGES = 40  # kept since a view; then the next view is made anew
MAX_NEW_ROWS = 20_000  # of one change; with more, readers fetch the view again
PAGES_REST = 2.0  # seconds between looks for pages
CONCLUSION_REST = 20  # the conclusion rests for this many times the time that it took


class Follower:
    """Follower of one record, for any number of readers.

    A view carries a version, and each change the next one. A reader that has missed one fetches
    the view again.

    Args:
        file: the record.
        key: number of the run on the page.
        name: name of the run on the page.
    """

    def __init__(self, file: Path, key: str, name: str) -> None:
        self.file, self.key, self.name = file, key, shorten(name)
        self.is_open = False  # whether somebody has asked for the view
        self.version = 0
        self._lock = threading.Lock()
        self._view: dict[str, Any] | None = None
        self._changes: list[dict[str, Any]] = []
        self._until: Mapping[str, int] = {}
        self._seen: tuple[int, ...] = ()
        self._conclusion: dict[str, Any] = {}
        self._next_conclusion = 0.0
        self._conclusion_is_old = False
        self._pages: list[tuple[str, str]] = []
        self._results: list[tuple[str, int, int]] = []
        self._next_pages = 0.0
        self._evals: dict[str, Any] = {}

    def view(self) -> str:
        """Return the whole run as JSON: a view, the changes since it was made, and its pages.

        Raises:
            RecordError: the record cannot be read.
        """
        with self._lock:
            self.is_open = True
            if self._view is None or len(self._changes) > MAX_CHANGES:
                self._begin()
            facts = {"view": self._view, "changes": self._changes, "pages": self._find_pages()}
            facts["evals"] = self._evals
            return _to_json(facts)

    def poll(self) -> str | None:
        """Return what is new as JSON, or None; a record that cannot be read is told as well."""
        if not self.is_open:
            return None
        with self._lock:
            if self._view is None:
                return None
            try:
                new = self._new_pages()
                is_due = new or self._is_touched() or self._conclusion_is_due()
                change = self._change(new) if is_due else None
                return None if change is None else self._told(change)
            except (RecordError, OSError) as error:
                text = escape_control_chars(str(error))
                return self._told(self._restart() | {"error": text})

    def _told(self, change: Mapping[str, Any]) -> str:
        return _to_json({"key": self.key, "version": self.version} | dict(change))

    def _begin(self) -> None:
        self._signature()
        with opened(self.file) as reader:
            until = position(reader)
            self._behaviors = reader.monitored()
            self._read_conclusion(reader)
            self._evals = evals_of(self.file, reader.meta()).to_dict()
            facts = {"key": self.key, "name": self.name, "version": self.version}
            self._view = facts | whole(reader, until) | {"conclusion": self._conclusion}
        self._until, self._changes, self._pages = until, [], self._find_pages()
        self._results = state_of_results(self.file.parent)
        self._inode = self.file.stat().st_ino

    def _change(self, pages: Mapping[str, Any]) -> dict[str, Any] | None:
        assert self._view is not None
        if self.file.stat().st_ino != self._inode:
            return self._restart()
        with opened(self.file) as reader:
            until = position(reader)
            new = sum(until.values()) - sum(self._until.values())
            structure = [until[t] != self._until[t] for t in ("meta", "superseded")]
            if any(structure) or new < 0 or new > MAX_NEW_ROWS:
                return self._restart()
            change = dict(pages)
            if new:
                size = self._view["size"]
                change |= new_rows(reader, self._until, until, size, self._behaviors)
                self._conclusion_is_old, self._until = True, until
            if self._conclusion_is_due():
                self._read_conclusion(reader)
                change["conclusion"] = self._conclusion
        if not change:
            return None
        self.version += 1
        self._changes.append(change | {"version": self.version})
        return change

    def _new_pages(self) -> dict[str, Any]:
        """Return pages and evals if others are there now; they are looked for rarely."""
        if time.monotonic() < self._next_pages:
            return {}
        self._next_pages = time.monotonic() + PAGES_REST
        before, self._results = self._results, state_of_results(self.file.parent)
        new: dict[str, Any] = {}
        if self._results != before:
            self._conclusion_is_old = True  # it tells what a diagnosis or a preflight has found
            new = self._new_evals()
        shown, self._pages = self._pages, self._find_pages()
        return new if self._pages == shown else new | {"pages": self._pages}

    def _new_evals(self) -> dict[str, Any]:
        with opened(self.file) as reader:
            found = evals_of(self.file, reader.meta()).to_dict()
        shown, self._evals = self._evals, found
        return {} if found == shown else {"evals": found}

    def _find_pages(self) -> list[tuple[str, str]]:
        """Return place and kind of the run's pages."""
        return [(quote(place), shorten(kind)) for place, (kind, _) in pages_of(self.file).items()]

    def _restart(self) -> dict[str, Any]:
        """Forget the view; readers fetch a new one."""
        self._view, self._changes, self._seen = None, [], ()
        self.version += 1
        return {"restart": True}

    def _read_conclusion(self, reader: Reader) -> None:
        began = time.thread_time()
        self._conclusion = conclusion_of(reader)
        self._conclusion_is_old = False
        took = time.thread_time() - began
        self._next_conclusion = time.monotonic() + CONCLUSION_REST * took

    def _conclusion_is_due(self) -> bool:
        return self._conclusion_is_old and time.monotonic() >= self._next_conclusion

    def _is_touched(self) -> bool:
        """Return whether the record may have new rows."""
        seen = self._seen
        newest = self._signature()
        return self._seen != seen or time.time() - newest < SETTLED_SECONDS

    def _signature(self) -> float:
        """Note size and time of the record's files; return the later time, in seconds."""
        found, newest = [], 0.0
        for file in (self.file, self.file.with_name(f"{self.file.name}-wal")):
            try:
                facts = file.stat()
            except OSError:
                found += [0, 0, 0]
                continue
            found += [facts.st_ino, facts.st_size, facts.st_mtime_ns]
            newest = max(newest, facts.st_mtime)
        self._seen = tuple(found)
        return newest


def _to_json(value: Any) -> str:
    """Write JSON; what cannot be written is an error of this run, not of the page.

    Raises:
        RecordError: a number is not finite.
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise RecordError(f"the run holds what JSON cannot: {error}") from error
