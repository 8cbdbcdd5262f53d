"""Results of other commands about a run, which lie in its folder or in one directly below it."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from riprap.errors import RecordError
from riprap.record._layout import FILE_NAME

PREFLIGHT, DIAGNOSIS, AUDIT = "preflight.json", "diagnosis.json", "audit.json"
MAX_ABOVE = 3  # folders above a model in which its run is looked for


def folders_of_run(folder: Path) -> list[Path]:
    """Return a run's folder and those directly below it; folders that are links are left out."""
    try:
        below = [own for own in folder.iterdir() if own.is_dir() and not own.is_symlink()]
    except OSError:
        return []
    return [folder, *sorted(below)]


def results_of_run(folder: Path, name: str) -> list[Path]:
    """Return the files of one kind of results, the newest first; links are left out."""
    files = [place / name for place in folders_of_run(folder)]
    found = [file for file in files if file.is_file() and not file.is_symlink()]
    return sorted(found, key=lambda file: file.stat().st_mtime_ns, reverse=True)


def load_result(file: Path) -> dict[str, Any]:
    """Return the content of a file of results; it is not to be changed.

    Raises:
        RecordError: the file cannot be read, or holds no results.
    """
    try:
        facts = file.stat()
        return _load(file, facts.st_mtime_ns, facts.st_size)
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{file} cannot be read: {error}") from error


@lru_cache(maxsize=16)  # a live page reads it again and again
def _load(file: Path, changed: int, size: int) -> dict[str, Any]:
    document = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ValueError("it holds no JSON object")
    return document


def run_of_model(model: Path) -> Path | None:
    """Return the folder of the run in which a model lies; None: it lies in no run's folder."""
    places = [model.absolute(), *model.absolute().parents][: MAX_ABOVE + 1]
    return next((folder for folder in places if (folder / FILE_NAME).is_file()), None)
