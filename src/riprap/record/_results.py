"""Results of other commands about a run, which lie in its folder or in one directly below it."""

from __future__ import annotations

import json
import stat
from functools import lru_cache
from pathlib import Path
from typing import Any

from riprap.errors import ConfigError, RecordError
from riprap.record._layout import FILE_NAME
from riprap.record._reader import Reader

PREFLIGHT, DIAGNOSIS, AUDIT = "preflight.json", "diagnosis.json", "audit.json"
EVALS = "evals.json"
EVAL_PLACES = [
    f"{place}{EVALS}"
    for place in ("", "*/", "checkpoint-*/*/", "*/checkpoint-*/", "*/checkpoint-*/*/")
]
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
    found = [(changed, file) for file, changed, _ in _found(folder, name)]
    return [file for _, file in sorted(found, reverse=True)]


def evals_of_run(folder: Path) -> list[Path]:
    """Return the results of evals in a run's folder and beside its checkpoints, by their places.

    They lie in the folder, in one directly below it, in that of a checkpoint, or in one directly
    below a checkpoint. Links are left out.
    """
    found: set[Path] = set()
    for pattern in EVAL_PLACES:
        found |= {file for file in folder.glob(pattern) if _is_inside(file, folder)}
    return sorted(found)


def _is_inside(file: Path, folder: Path) -> bool:
    """Return whether a file is one, and neither it nor a folder on the way to it is a link."""
    way = file.relative_to(folder).parents
    try:
        return file.is_file() and not any(
            own.is_symlink() for own in (file, *(folder / part for part in way if part.parts))
        )
    except OSError:
        return False


def state_of_results(folder: Path) -> list[tuple[str, int, int]]:
    """Return place, time and size of all results about a run: they change when a result does."""
    names = (PREFLIGHT, DIAGNOSIS, AUDIT)
    found = [own for name in names for own in _found(folder, name)]
    for file in evals_of_run(folder):
        try:
            facts = file.stat()
        except OSError:
            continue
        found.append((file, facts.st_mtime_ns, facts.st_size))
    return [(str(file), changed, size) for file, changed, size in found]


def _found(folder: Path, name: str) -> list[tuple[Path, int, int]]:
    """Return each file of that name with its time and size."""
    found = []
    for place in folders_of_run(folder):
        file = place / name
        try:
            facts = file.lstat()
        except OSError:  # there is none, it has just gone, or the folder may not be entered
            continue
        if stat.S_ISREG(facts.st_mode):
            found.append((file, facts.st_mtime_ns, facts.st_size))
    return found


def state_of_weights(model: Path) -> dict[str, list[int]]:
    """Return time and size of the files of a model's weights, by name; {}: it is not there."""
    try:
        files = {file.name: file.stat() for file in sorted(model.glob("*.safetensors"))}
    except OSError:
        return {}
    return {name: [facts.st_mtime_ns, facts.st_size] for name, facts in files.items()}


def save_result(document: dict[str, Any], file: Path) -> None:
    """Write results as JSON, completely or not at all: a live page may read them at any time.

    Raises:
        ConfigError: the file cannot be written.
    """
    partial = file.with_name(f"{file.name}.partial")
    text = json.dumps(document, indent=1, allow_nan=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error}") from error


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
    """Return the folder of the run in which a model lies; None: it lies in no run's folder.

    A name of the hub is no folder, and lies in no run.
    """
    try:
        if not model.is_dir():
            return None
        places = [model.absolute(), *model.absolute().parents][: MAX_ABOVE + 1]
        return next((folder for folder in places if (folder / FILE_NAME).is_file()), None)
    except OSError:  # a name that is too long for a file, or a folder that may not be entered
        return None


def origin_of_model(model: Path, run: Path | None = None) -> dict[str, Any] | None:
    """Return which run made a model, where it lies there, and the state of its weights.

    None: no run is known.

    Args:
        run: its folder, where the model does not lie in it.

    Raises:
        RecordError: the record of the run cannot be read.
    """
    run = run or run_of_model(model)
    if run is None:
        return None
    with Reader(run) as reader:
        started = reader.meta().get("started")
    try:
        place = model.resolve().relative_to(run.resolve()).as_posix()
    except ValueError:
        place = model.name
    return {"started": started, "checkpoint": place, "weights": state_of_weights(model)}
