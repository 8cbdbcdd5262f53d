"""Scores of all rows: appended to a folder part by part, so that a killed run can resume."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from riprap.commands.select._choose import HARM, Array
from riprap.errors import ConfigError

SETTINGS, SCORES, PARTS = "settings.json", "scores.parquet", "parts"
ABOUT = b"riprap"  # key of the settings in the metadata of the scores
_REMOVE = "remove it and the parts after it, and their rows are scored again"


class Store:
    """Scores in a folder: `parts/` during scoring, `scores.parquet` once rows are selected.

    Args:
        settings: everything on which the scores depend; stored beside them.

    Attributes:
        done: number of scored rows.

    Raises:
        ConfigError: the folder has scores of other settings, or other files.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], behaviors: Sequence[str]) -> None:
        self.folder, self._settings = folder, settings
        self._schema = schema(behaviors)
        self._open()
        self.done = self._count()

    def _open(self) -> None:
        settings = self.folder / SETTINGS
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if settings.exists():
                stored = json.loads(settings.read_text(encoding="utf-8"))
                _require_same(stored, self._settings, self.folder)
            elif any(file.suffix != ".partial" for file in self.folder.iterdir()):
                raise ConfigError(f"{self.folder} is not empty: name another folder by --out")
            else:
                partial = settings.with_name(SETTINGS + ".partial")
                partial.write_bytes(json.dumps(self._settings, indent=1).encode())
                partial.replace(settings)
            (self.folder / PARTS).mkdir(exist_ok=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot write scores to {self.folder}: {error}") from error

    def _files(self) -> list[Path]:
        scores = self.folder / SCORES
        return [scores] if scores.exists() else sorted((self.folder / PARTS).glob("*.parquet"))

    def _count(self) -> int:
        count = 0
        for file in self._files():
            try:
                in_order = file.name == SCORES or int(file.stem) == count
                count += int(pq.ParquetFile(file).metadata.num_rows)
            except (OSError, ValueError) as error:
                raise ConfigError(f"{file} cannot be read: {error}; {_REMOVE}") from error
            if not in_order:
                raise ConfigError(f"{file} does not continue after {count:,} rows; {_REMOVE}")
        return count

    def append(self, columns: dict[str, list[Any]]) -> None:
        """Write the scores of the next rows; a kill loses all of them or none."""
        table = pa.table({name: columns[name] for name in self._schema.names}, self._schema)
        part = self.folder / PARTS / f"{self.done:012d}.parquet"
        partial = part.with_suffix(".partial")
        try:
            pq.write_table(table, partial)
            partial.rename(part)
        except OSError as error:
            raise ConfigError(f"cannot write scores to {self.folder}: {error}") from error
        self.done += len(table)

    def table(self) -> pa.Table:
        """Load the scores of all rows."""
        parts = [pq.ParquetFile(file).read(self._schema.names) for file in self._files()]
        tables = [part.replace_schema_metadata(None) for part in parts]
        return pa.concat_tables(tables).combine_chunks()

    def finish(self, table: pa.Table, chosen: Array) -> None:
        """Write `scores.parquet`: the table with a column `chosen`."""
        table = table.append_column("chosen", pa.array(chosen))
        table = table.replace_schema_metadata({ABOUT: json.dumps(self._settings).encode()})
        partial = self.folder / f"{SCORES}.partial"
        pq.write_table(table, partial)
        partial.replace(self.folder / SCORES)
        for part in (self.folder / PARTS).iterdir():
            part.unlink()
        (self.folder / PARTS).rmdir()


def schema(behaviors: Sequence[str]) -> pa.Schema:
    """Return the columns of the scores."""
    scores = ("loss", "norm", "proxy", *(HARM + name for name in behaviors))
    fields = [("row", pa.int64()), ("id", pa.string()), ("category", pa.string())]
    fields += [("tokens", pa.int32()), ("cut", pa.bool_())]
    return pa.schema(fields + [(name, pa.float64()) for name in scores])


def number_columns(table: pa.Table) -> dict[str, Array]:
    """Return the columns of numbers, as arrays."""
    return {
        field.name: table[field.name].to_numpy()
        for field in table.schema
        if not pa.types.is_string(field.type)
    }


def _require_same(stored: Any, settings: dict[str, Any], folder: Path) -> None:
    for key, value in json.loads(json.dumps(settings)).items():
        before = stored.get(key) if isinstance(stored, dict) else None
        if before != value:
            raise ConfigError(
                f"{folder} has scores that were begun with {key} {json.dumps(before)}, and now it "
                f"is {json.dumps(value)}: change it back, or name another folder by --out"
            )
