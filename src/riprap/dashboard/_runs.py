"""The runs of a page: those that were named, and those that appear below a folder."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from riprap.dashboard._follower import Follower
from riprap.errors import RecordError
from riprap.record import FILE_NAME, locate_record, records_below


class Runs:
    """The runs below some folders, each with a number that it keeps.

    Args:
        sources: folders of runs, record files, or folders under which runs are or will be.

    Raises:
        RecordError: a source does not exist.
    """

    def __init__(self, sources: Sequence[str | Path]) -> None:
        self.sources = [Path(source) for source in sources]
        for source in self.sources:
            if not source.exists():
                raise RecordError(f"no run at {source}: give a run's folder, or a folder of runs")
            if source.is_file():
                locate_record(source)
        self.followers: dict[str, Follower] = {}
        self._known: set[Path] = set()
        self._lock = threading.Lock()  # the polling thread looks, and so does each new reader
        self.refresh()

    def refresh(self) -> list[Follower]:
        """Look for runs; return those that are new, the longest unwritten first."""
        with self._lock:
            return self._refresh()

    def _refresh(self) -> list[Follower]:
        found = []
        for source in self.sources:
            for file in [source] if source.is_file() else records_below(source):
                if file.resolve() not in self._known:
                    self._known.add(file.resolve())
                    found.append((file, _name(file, source)))
        new = []
        for file, name in sorted(found, key=lambda pair: (_written(pair[0]), pair[1])):
            follower = Follower(file, str(len(self.followers) + 1), name)
            self.followers[follower.key] = follower
            new.append(follower)
        return new


def _name(file: Path, source: Path) -> str:
    folder = file.parent if file.name == FILE_NAME else file
    try:
        inside = folder.relative_to(source)
    except ValueError:
        inside = Path()
    return str(inside) if inside.parts else folder.absolute().name


def _written(file: Path) -> float:
    """Return when the record was last written, in seconds."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
