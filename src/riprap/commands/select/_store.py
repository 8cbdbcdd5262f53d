"""The file of scores while it grows: whole parts alone count, so that a killed run can go on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from riprap.commands.select._choose import HARM, Group
from riprap.errors import ConfigError

SETTINGS, SCORES, PARTS = "settings.json", "scores.parquet", "parts"
ABOUT = b"riprap"  # key of the settings in the metadata of the scores
_REMOVE = "remove it and the parts after it, and their rows are scored again"
GROUP = 65_536  # rows of a row group of the whole file; parts are as small as they came


class Store:
    """Scores in a folder: `parts/` while they are made, `scores.parquet` once rows are chosen.

    Args:
        settings: whatever the scores depend on; kept beside them.

    Attributes:
        done: rows that are scored.

    Raises:
        ConfigError: the folder holds scores of other settings, or something else.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], behaviors: Sequence[str]) -> None:
        self.folder, self._settings = folder, settings
        self._schema = schema(behaviors)
        self._open()
        self.done = self._count()

    def _open(self) -> None:
        noted = self.folder / SETTINGS
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if noted.exists():
                _same(json.loads(noted.read_text(encoding="utf-8")), self._settings, self.folder)
            elif any(file.suffix != ".partial" for file in self.folder.iterdir()):
                raise ConfigError(f"{self.folder} is not empty: name another folder by --out")
            else:
                _replace(noted, json.dumps(self._settings, indent=1).encode())
            (self.folder / PARTS).mkdir(exist_ok=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot keep scores in {self.folder}: {error}") from error

    def _files(self) -> list[Path]:
        whole = self.folder / SCORES
        return [whole] if whole.exists() else sorted((self.folder / PARTS).glob("*.parquet"))

    def _count(self) -> int:
        count = 0
        for file in self._files():
            try:
                placed = file.name == SCORES or int(file.stem) == count
                count += int(pq.ParquetFile(file).metadata.num_rows)
            except (OSError, ValueError) as error:
                raise ConfigError(f"{file} cannot be read: {error}; {_REMOVE}") from error
            if not placed:
                raise ConfigError(f"{file} does not follow on the {count:,} rows before; {_REMOVE}")
        return count

    def append(self, columns: dict[str, list[Any]]) -> None:
        """Scores of the rows after those that are done; all of them are kept, or none."""
        table = pa.table({name: columns[name] for name in self._schema.names}, self._schema)
        part = self.folder / PARTS / f"{self.done:012d}.parquet"
        partial = part.with_suffix(".partial")
        try:
            pq.write_table(table, partial)
            partial.rename(part)
        except OSError as error:
            raise ConfigError(f"cannot keep scores in {self.folder}: {error}") from error
        self.done += len(table)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """One pass, row group after row group."""
        for name in self._files():
            with pq.ParquetFile(name) as file:
                for at in range(file.num_row_groups):
                    yield file.read_row_group(at, columns)

    def groups(self) -> Iterator[Group]:
        """One pass over the numbers."""
        names = [f.name for f in self._schema if not pa.types.is_string(f.type)]
        for table in self.tables(names):
            yield {name: _array(table[name]) for name in names}

    def finish(self, chosen: Iterator[np.ndarray]) -> None:
        """Write `scores.parquet`, with a column `chosen`; one mask for each group of a pass."""
        full = self._schema.append(pa.field("chosen", pa.bool_()))
        full = full.with_metadata({ABOUT: json.dumps(self._settings).encode()})
        partial = self.folder / f"{SCORES}.partial"
        pairs = zip(self.tables(self._schema.names), chosen, strict=True)
        marked = (table.append_column("chosen", pa.array(mask)) for table, mask in pairs)
        with pq.ParquetWriter(partial, full) as writer:
            for table in regrouped(marked, GROUP):
                writer.write_table(table.cast(full))
        partial.replace(self.folder / SCORES)
        for part in (self.folder / PARTS).iterdir():
            part.unlink()
        (self.folder / PARTS).rmdir()


def regrouped(tables: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of `size` rows, the last one with what is left."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while sum(map(len, held)) >= size:
            joined = pa.concat_tables(held).combine_chunks()
            yield joined.slice(0, size)
            held = [joined.slice(size)]
    if sum(map(len, held)):
        yield pa.concat_tables(held).combine_chunks()


def schema(behaviors: Sequence[str]) -> pa.Schema:
    """Columns of the scores."""
    numbers = ("loss", "norm", "proxy", *(HARM + name for name in behaviors))
    fields = [("row", pa.int64()), ("id", pa.string()), ("category", pa.string())]
    fields += [("tokens", pa.int32()), ("cut", pa.bool_())]
    return pa.schema(fields + [(name, pa.float64()) for name in numbers])


def _array(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.combine_chunks().to_numpy(zero_copy_only=False))


def _same(then: Any, now: dict[str, Any], folder: Path) -> None:
    for key, value in json.loads(json.dumps(now)).items():
        old = then.get(key) if isinstance(then, dict) else None
        if old != value:
            raise ConfigError(
                f"{folder} holds scores that were begun with {key} {json.dumps(old)}, and now it "
                f"is {json.dumps(value)}: change it back, or name another folder by --out"
            )


def _replace(file: Path, content: bytes) -> None:
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(content)
    partial.replace(file)
