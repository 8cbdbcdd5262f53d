"""Folder in which a command writes its results, which are never overwritten."""

from __future__ import annotations

import os
from pathlib import Path

from riprap.errors import ConfigError
from riprap.record import expand_time


def result_folder(out: Path, *files: str) -> Path:
    """Return a folder for results, with the present time in place of `{time}`; create nothing.

    Args:
        files: names of the results.

    Raises:
        ConfigError: it is a file, holds results already, or cannot be written.
    """
    folder = expand_time(out.expanduser())
    places = (folder.absolute(), *folder.absolute().parents)
    above = next(place for place in places if os.access(place, os.F_OK))
    if above == folder.absolute() and not above.is_dir():
        raise ConfigError(f"--out {folder} is a file; pass a folder")
    own_rights = os.access in os.supports_effective_ids
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK, effective_ids=own_rights):
        raise ConfigError(
            f"--out {folder} cannot be written: {above} is no folder in which you may write; pass "
            "another folder"
        )
    there = next((name for name in files if (folder / name).exists()), None)
    if there is not None:
        raise ConfigError(
            f"--out {folder} already holds {there}, and results are never overwritten: pass "
            f"another folder; --out '{folder}-{{time}}' is a new folder each time"
        )
    return folder
