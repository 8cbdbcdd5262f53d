"""Share a sweep among ranks, and continue an interrupted one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist

from riprap.errors import BehaviorError, ConfigError

T = TypeVar("T")
DirectionRow = dict[str, dict[str, list[float]]]  # quantity -> behavior -> value at each point

MARGIN_TOLERANCE = 1e-2  # of the largest margin: allows for another device or precision


def rank_and_world_size() -> tuple[int, int]:
    """Return this rank and the number of ranks; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_from_ranks(function: Callable[[], T]) -> list[T]:
    """Call a function on each rank and return all results on all ranks.

    Raises:
        BehaviorError: it failed on another rank; an error on one rank raises on all.
    """
    world_size = rank_and_world_size()[1]
    if world_size == 1:
        return [function()]
    value: T | None = None
    failure: Exception | None = None
    try:
        value = function()
    except Exception as error:  # noqa: BLE001 raised again below, once the other ranks know
        failure = error
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, (value, None if failure is None else str(failure)))
    if failure is not None:
        raise failure
    for rank, (_, message) in enumerate(gathered):
        if message is not None:
            raise BehaviorError(f"on rank {rank}: {message}")
    return [result for result, _ in gathered]


class SweepLog:
    """Finished directions of a sweep, one JSON line each after a header line with its identity.

    Ranks after the first write to `<path>.<rank>`. All of these files are read on start, so a sweep
    can continue with another number of ranks.

    Args:
        path: None: store nothing.
        identity: of the sweep; its margins need only be close to those in the file.

    Raises:
        ConfigError: the file belongs to another sweep.
    """

    def __init__(self, path: str | Path | None, identity: dict[str, Any]) -> None:
        self.done: dict[int, DirectionRow] = {}
        self._path: Path | None = None
        if path is None:
            return
        first, (rank, _) = Path(path), rank_and_world_size()
        self._path = first if rank == 0 else Path(f"{first}.{rank}")
        for file in [first, *sorted(first.parent.glob(f"{first.name}.[0-9]*"))]:
            for row in _direction_rows(file, identity):
                self.done[row.pop("direction")] = row
        if not _complete_lines(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._write(identity, "w")

    def add(self, number: int, row: DirectionRow) -> None:
        """Append a direction; after this returns, it survives the end of the process."""
        if self._path is not None:
            self._write({"direction": number, **row}, "a")

    def _write(self, content: dict[str, Any], mode: str) -> None:
        assert self._path is not None
        is_torn = mode == "a" and not self._path.read_bytes().endswith(b"\n")
        with self._path.open(mode, encoding="utf-8") as file:
            file.write("\n" * is_torn + json.dumps(content) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _complete_lines(file: Path) -> list[Any]:
    """Parsed lines of a file, without lines that a killed process left incomplete."""
    lines = []
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    for line in text.splitlines():
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def _direction_rows(file: Path, identity: dict[str, Any]) -> list[Any]:
    """Directions in a file, after its header was compared with `identity`."""
    lines = _complete_lines(file)
    if not lines:
        if file.exists() and file.read_bytes()[:8] not in (b"", b'{"basin"'):
            raise ConfigError(f"{file} is not the log of a basin: pass a path of its own")
        return []
    if difference := _difference(lines[0], identity):
        raise ConfigError(
            f"{file} belongs to another sweep, with other {difference}: pass a path of its own, or "
            "remove the file"
        )
    return lines[1:]


def _difference(header: Any, identity: dict[str, Any]) -> str:
    """Name of the first difference between a header and `identity`; empty if there is none."""
    if not isinstance(header, dict) or header.keys() != identity.keys():
        return "contents"
    for key, value in identity.items():
        if key != "margins" and header[key] != value:
            return key
    for name, values in identity["margins"].items():
        before, now = (np.array(m, dtype=np.float64) for m in (header["margins"][name], values))
        atol = MARGIN_TOLERANCE * float(np.nanmax(np.abs(now), initial=0.0))
        same_shape = before.shape == now.shape
        if not (same_shape and np.allclose(before, now, rtol=0, atol=atol, equal_nan=True)):
            return f"probes of {name!r}"
    return ""
