"""Work that is shared: over ranks, and with an earlier sweep that was interrupted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist

from riprap.errors import BehaviorError, ConfigError

T = TypeVar("T")
Row = dict[str, dict[str, list[float]]]  # of a direction: what -> behaviour -> by point

CLOSE = 1e-2  # of the largest margin: what another device or precision may change


def place_among_ranks() -> tuple[int, int]:
    """(this rank, how many there are)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def on_every_rank(act: Callable[[], T]) -> list[T]:
    """What `act` gave on each rank, on all of them; what fails on one fails on all.

    Raises:
        BehaviorError: it failed on another rank.
    """
    world = place_among_ranks()[1]
    if world == 1:
        return [act()]
    value: T | None = None
    failure: Exception | None = None
    try:
        value = act()
    except Exception as error:  # noqa: BLE001 raised again below, once the others know
        failure = error
    told: list[Any] = [None] * world
    dist.all_gather_object(told, (value, None if failure is None else str(failure)))
    if failure is not None:
        raise failure
    for other, (_, words) in enumerate(told):
        if words is not None:
            raise BehaviorError(f"on rank {other}: {words}")
    return [found for found, _ in told]


class Log:
    """Directions that are done, one JSON line each, under a line that says what they belong to.

    Ranks after the first write beside it, to `<path>.<rank>`; all of these files are read again,
    so that a sweep may go on with another number of ranks.

    Args:
        path: None: nothing is kept.
        identity: what the directions belong to; its margins need only be near those of the file.

    Raises:
        ConfigError: a file there belongs to something else.
    """

    def __init__(self, path: str | Path | None, identity: dict[str, Any]) -> None:
        self.done: dict[int, Row] = {}
        self._path: Path | None = None
        if path is None:
            return
        first, (rank, _) = Path(path), place_among_ranks()
        self._path = first if rank == 0 else Path(f"{first}.{rank}")
        for file in [first, *sorted(first.parent.glob(f"{first.name}.[0-9]*"))]:
            for row in _lines(file, identity):
                self.done[row.pop("direction")] = row
        if not _whole_lines(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._write(identity, "w")

    def add(self, number: int, row: Row) -> None:
        """Keep a direction; once this returns, it survives the process."""
        if self._path is not None:
            self._write({"direction": number, **row}, "a")

    def _write(self, content: dict[str, Any], mode: str) -> None:
        assert self._path is not None
        torn = mode == "a" and not self._path.read_bytes().endswith(b"\n")
        with self._path.open(mode, encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps(content) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _whole_lines(file: Path) -> list[Any]:
    """The lines of a file, without those that a killed process left half written."""
    found = []
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def _lines(file: Path, identity: dict[str, Any]) -> list[Any]:
    """The directions in a file, if it belongs to `identity`."""
    if not file.exists():
        return []
    whole = _whole_lines(file)
    if not whole:
        if file.stat().st_size and not file.read_bytes().startswith(b'{"basin"'):
            raise ConfigError(f"{file} is no record of a basin: give a path of its own")
        return []
    other = _difference(whole[0], identity)
    if other:
        raise ConfigError(
            f"{file} belongs to another sweep, with other {other}: give a path of its own, or "
            "remove the file"
        )
    return whole[1:]


def _difference(header: Any, identity: dict[str, Any]) -> str:
    """In what a file's first line differs from `identity`; empty where in nothing."""
    if not isinstance(header, dict) or header.keys() != identity.keys():
        return "contents"
    for key, own in identity.items():
        if key != "margins" and header[key] != own:
            return key
    for name, own in identity["margins"].items():
        before = np.array(header["margins"][name], dtype=np.float64)
        now = np.array(own, dtype=np.float64)
        scale = float(np.nanmax(np.abs(now), initial=0.0))
        if before.shape != now.shape or not np.allclose(
            before, now, rtol=0, atol=CLOSE * scale, equal_nan=True
        ):
            return f"probes of {name!r}"
    return ""
