"""Folder in which a command writes its results, which are never overwritten."""

from __future__ import annotations

from pathlib import Path

from riprap.errors import ConfigError
from riprap.record import expand_time


def result_folder(out: Path, *files: str) -> Path:
    """Return a folder for results, with the present time in place of `{time}`; create nothing.

    Args:
        files: names of the results.

    Raises:
        ConfigError: it is a file, or holds results already.
    """
    folder = expand_time(out.expanduser())
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file; pass a folder")
    there = next((name for name in files if (folder / name).exists()), None)
    if there is not None:
        raise ConfigError(
            f"--out {folder} already holds {there}, and results are never overwritten: pass "
            f"another folder; --out '{folder}-{{time}}' is a new folder each time"
        )
    return folder
