"""Read the rows of a file, a saved data set or a hub data set, with texts as they are written.

JSON is read by the standard library, so that `00501` in a CSV file and `18.50` in a JSON file keep
their form; `datasets` reads saved data sets and hub ids, pyarrow reads Parquet.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from riprap._text import first_line
from riprap.commands._models import SHOWN
from riprap.errors import ConfigError

if TYPE_CHECKING:
    from riprap.commands._data import DataConfig

LINES = (".jsonl", ".ndjson")
TABLES = {".csv": ",", ".tsv": "\t"}
READABLE = "JSON Lines (.jsonl), JSON, CSV, TSV or Parquet"
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz")
OTHERS = (".xlsx", ".xls", ".ods", ".arrow", ".feather", ".pkl", ".pickle", ".pt", ".db", ".sqlite")
MAX_CELL = 2**31 - 1  # characters of a cell of a CSV file


class WrittenInt(int):
    """Integer of a JSON text, with the form in which it is written."""

    written: str


class WrittenFloat(float):
    """Number of a JSON text, with the form in which it is written: `18.50`, `1e5`."""

    written: str


def _written(kind: Any) -> Any:
    def read(text: str) -> Any:
        number = kind(text)
        number.written = text
        return number

    return read


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:SHOWN]!r} stands twice in one object")
    return found


DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys,
    parse_int=_written(WrittenInt),
    parse_float=_written(WrittenFloat),
    parse_constant=float,  # NaN and Infinity: no written form, so they are no text
)


class Source:
    """Rows of a data set as lines of JSON, with their numbers from 1.

    Attributes:
        name: the data set in the text of an error.
        unit: "line" of a JSON Lines file, or "row".

    Raises:
        ConfigError: there is no such file, folder or data set, or it cannot be read.
    """

    def __init__(self, data: DataConfig) -> None:
        self.data = data
        self.name, self.unit = f"data {data.path[:SHOWN]!r}", "row"

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Return the rows; those of a JSON Lines file are unchanged."""
        try:
            path = Path(self.data.path).expanduser()
            is_file, is_folder = path.is_file(), path.is_dir()
        except (OSError, RuntimeError, ValueError) as error:  # no such user; NUL in the path
            raise self._unreadable(error) from error
        if not self.data.path:
            raise ConfigError(f"{self.name} is empty: give a file, a folder or a hub id")
        if is_folder:
            return self._saved(path)
        if is_file:
            return self._file(path)
        known = path.suffix.lower() in (*LINES, *TABLES, ".json", ".parquet", *PACKED, *OTHERS)
        if known or self.data.path.startswith((".", "/", "~")) or self.data.path.count("/") > 1:
            raise ConfigError(f"{self.name} cannot be read: No such file or folder")
        return self._hub()

    def _unreadable(self, error: Exception) -> ConfigError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        first = first_line(reason, type(error).__name__)[:SHOWN]
        return ConfigError(f"{self.name} cannot be read: {first}")

    def _file(self, path: Path) -> Iterator[tuple[int, bytes]]:
        suffix = path.suffix.lower()
        if suffix in PACKED:
            raise ConfigError(f"{self.name} is packed ({suffix}): unpack it first")
        if suffix in OTHERS:
            raise ConfigError(f"{self.name} is a {suffix} file: save it as {READABLE}")
        if self.data.split is not None or self.data.name is not None:
            key = "split" if self.data.split is not None else "name"
            raise ConfigError(f"{self.name} is one file: remove `{key}`, which has no effect")
        if suffix in TABLES:
            return self._table(path, TABLES[suffix])
        if suffix == ".parquet":
            return self._parquet(path)
        if suffix == ".json":
            return self._json(path)
        return self._json_lines(path)

    def _json_lines(self, path: Path) -> Iterator[tuple[int, bytes]]:
        self.unit = "line"
        try:
            with path.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                    if line.strip():
                        yield number, line
        except OSError as error:
            raise self._unreadable(error) from error

    def _json(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """Rows of a JSON array, each as the text that stands in the file; or JSON Lines."""
        text = self._text(path)
        at = _skip_space(text, 0)
        if not text.startswith("[", at):
            yield from self._json_lines(path)
            return
        at, number = _skip_space(text, at + 1), 0
        while not text.startswith("]", at):
            number += 1
            try:
                _, end = DECODER.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                why = str(error)[:SHOWN]
                raise ConfigError(f"row {number} of {self.name} is not JSON: {why}") from error
            # A text in JSON has no line breaks, so those in between are spaces.
            yield number, text[at:end].replace("\n", " ").replace("\r", " ").encode() + b"\n"
            at = _skip_space(text, end)
            if text.startswith(",", at):
                at = _skip_space(text, at + 1)
            elif not text.startswith("]", at):
                raise ConfigError(f"{self.name} is not JSON: there is no comma after row {number}")
        if _skip_space(text, at + 1) < len(text):
            raise ConfigError(f"{self.name} is not JSON: there is text after its list of rows")

    def _text(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self.name} is not UTF-8: save it as UTF-8") from error
        except OSError as error:
            raise self._unreadable(error) from error

    def _table(self, path: Path, delimiter: str) -> Iterator[tuple[int, bytes]]:
        csv.field_size_limit(MAX_CELL)
        number = 0
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.reader(file, delimiter=delimiter, strict=True)
                header = next(rows, None)
                if header is None:
                    raise ConfigError(f"{self.name} cannot be loaded: it is empty")
                self._check_header(header)
                for row in rows:
                    if not row:  # a blank line
                        continue
                    number += 1
                    if len(row) != len(header):
                        raise ConfigError(
                            f"row {number} of {self.name} has {len(row)} cells, and the header has "
                            f"{len(header)}: put cells that contain {delimiter!r} in quotes"
                        )
                    cells = {k: c or None for k, c in zip(header, row, strict=True)}
                    yield number, _dump(cells)
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self.name} is not UTF-8: save it as UTF-8") from error
        except csv.Error as error:
            raise ConfigError(f"row {number + 1} of {self.name} cannot be read: {error}") from error
        except OSError as error:
            raise self._unreadable(error) from error

    def _check_header(self, header: list[str]) -> None:
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"{self.name} has two columns named {twice[:SHOWN]!r}")
        if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
            raise ConfigError(
                f"{self.name} has one column, {header[0][:SHOWN]!r}: separate cells by commas "
                "(.csv) or tabs (.tsv)"
            )

    def _parquet(self, path: Path) -> Iterator[tuple[int, bytes]]:
        number = 0
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=256):
                    for record in batch.to_pylist():
                        number += 1
                        yield number, _dump(record)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from error

    def _saved(self, folder: Path) -> Iterator[tuple[int, bytes]]:
        """Rows of a folder that `save_to_disk` wrote, of one data set or of several splits."""
        if not any((folder / n).is_file() for n in ("dataset_dict.json", "dataset_info.json")):
            files = [f.name for f in sorted(folder.rglob("*")) if f.suffix.lower() in _READABLE]
            such = f", such as {files[0]!r}" if files else f"; readable are {READABLE}"
            raise ConfigError(
                f"{self.name} is a folder that `datasets.save_to_disk` did not write: name a "
                f"file{such}"
            )
        import datasets

        try:
            found = datasets.load_from_disk(str(folder))
        except Exception as error:
            raise self._unreadable(error) from error
        if isinstance(found, datasets.DatasetDict):
            split = self.data.split or "train"
            if split not in found:
                known = ", ".join(map(repr, found))[:SHOWN]
                raise ConfigError(f"{self.name} has no split {split!r}: set `split` to {known}")
            found = found[split]
        elif self.data.split is not None:
            raise ConfigError(f"{self.name} is one split: remove `split`, which has no effect")
        return _numbered(found)

    def _hub(self) -> Iterator[tuple[int, bytes]]:
        import datasets

        split = self.data.split or "train"
        try:
            found = datasets.load_dataset(self.data.path, self.data.name, split=split)
        except Exception as error:
            cause = error.__cause__ or error  # of "an error occurred while generating the dataset"
            first = first_line(cause, "it is empty")[:SHOWN]
            raise ConfigError(
                f"{self.name} is neither a file nor a data set that can be loaded: {first}"
            ) from error
        return _numbered(found)


_READABLE = (*LINES, *TABLES, ".json", ".parquet")


def _numbered(records: Iterable[Any]) -> Iterator[tuple[int, bytes]]:
    for number, record in enumerate(records, 1):
        yield number, _dump(record)


def _dump(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, default=_plain).encode() + b"\n"


def _plain(value: Any) -> Any:
    """Return a value that JSON does not have: a date as text, bytes as a mark that is no text."""
    return {"type": type(value).__name__} if isinstance(value, bytes) else str(value)


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
