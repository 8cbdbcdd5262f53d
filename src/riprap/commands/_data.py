"""Rows of a data set: one loader for `riprap watch` and `riprap select`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from pydantic import Field

from riprap._config import StrictModel
from riprap.commands._models import SHOWN
from riprap.errors import ConfigError

_FORMATS = {".json": "json", ".csv": "csv", ".parquet": "parquet"}


class DataConfig(StrictModel):
    """Rows to train on: a file (JSON Lines, JSON, CSV, Parquet) or a Hugging Face dataset id.

    Attributes:
        prompt, response: names of the fields; a dot enters nested fields (`instances.0.output`).
        response_prefix: text put before each response.
        limit: use the first rows only.
    """

    path: str
    split: str = "train"
    prompt: str = "prompt"
    response: str = "response"
    response_prefix: str = ""
    limit: int | None = Field(default=None, ge=1)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a data set."""

    number: int  # line in a JSON Lines file, or position in another data set, from 1
    prompt: str
    response: str
    id: str | None = None
    category: str | None = None


@dataclass(frozen=True)
class DataSummary:
    """Number of rows of a data set, and their hash."""

    rows: int
    digest: str


class RowReader:
    """Reader of the rows of a data set, in their order and one at a time.

    A JSON Lines file is read line by line; `datasets` reads every other format.

    Args:
        id, category: fields that identify a row and name its category.
    """

    def __init__(
        self, data: DataConfig, id: str | None = None, category: str | None = None
    ) -> None:
        self.data, self._id, self._category = data, id, category
        self._name, self._unit = f"data {data.path[:SHOWN]!r}", "line"

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Return the rows as JSON, with their numbers; lines of JSON Lines are unchanged."""
        return islice(self._all_lines(), self.data.limit)

    def parse(self, number: int, line: bytes) -> Row:
        """Parse a row; raise a ConfigError if it does not have the fields as text."""
        where = f"{self._unit} {number} of {self._name}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where} is not JSON: {str(error)[:SHOWN]}") from error
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise ConfigError(f"{where} is {kind}; an object with fields is needed")
        prompt = _field_text(record, self.data.prompt, where)
        response = self.data.response_prefix + _field_text(record, self.data.response, where)
        row_id, category = (
            None if field is None else _field_text(record, field, where)
            for field in (self._id, self._category)
        )
        try:
            "".join((prompt, response, row_id or "", category or "")).encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{where} contains half of a surrogate pair, which is not a character"
            ) from error
        return Row(number, prompt, response, row_id, category)

    def rows(self, start: int = 0) -> Iterator[Row]:
        """Return the rows after the first `start`, read one at a time."""
        for number, line in islice(self.lines(), start, None):
            yield self.parse(number, line)

    def check(self) -> DataSummary:
        """Read and check every row.

        Raises:
            ConfigError: the data set cannot be read, has no rows, or has a row that is wrong.
        """
        digest, count = hashlib.sha256(), 0
        for number, line in self.lines():
            digest.update(line)
            self.parse(number, line)
            count += 1
        if count == 0:
            raise ConfigError(f"{self._name} has no rows")
        return DataSummary(count, digest.hexdigest()[:16])

    def _all_lines(self) -> Iterator[tuple[int, bytes]]:
        try:
            file = Path(self.data.path).expanduser()
            if file.suffix == ".jsonl" or (file.suffix not in _FORMATS and file.is_file()):
                with file.open("rb") as lines:
                    for number, line in enumerate(lines, 1):
                        if line.strip():
                            yield number, line
                return
        except (OSError, RuntimeError, ValueError) as error:  # no such user; NUL in the path
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ConfigError(f"{self._name} cannot be read: {str(reason)[:SHOWN]}") from error
        self._unit = "row"
        for number, record in enumerate(self._dataset, 1):
            yield number, json.dumps(record, ensure_ascii=False, default=str).encode() + b"\n"

    @cached_property
    def _dataset(self) -> datasets.Dataset:
        try:
            file = Path(self.data.path).expanduser()
            file_format = _FORMATS.get(file.suffix)
            if file_format is None:
                return datasets.load_dataset(self.data.path, split=self.data.split)
            if file.is_file():
                return datasets.load_dataset(file_format, data_files=str(file), split="train")
        except Exception as error:
            cause = error.__cause__ or error  # of "an error occurred while generating the dataset"
            first = (str(cause).strip().splitlines() or ["it is empty"])[0][:SHOWN]
            raise ConfigError(f"{self._name} cannot be loaded: {first}") from error
        raise ConfigError(f"{self._name}: no such file")


def _field_text(record: dict[str, Any], field: str, where: str) -> str:
    value: Any = record
    for part in field.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            known = ", ".join(record)[:SHOWN]
            raise ConfigError(f"{where} has no field {field[:SHOWN]!r}; it has {known}") from error
    if not isinstance(value, str | int | float):  # "None" would be learned as a word
        kind = type(value).__name__
        raise ConfigError(f"{where}: field {field[:SHOWN]!r} is {kind}; give a text")
    return str(value)


def load_rows(data: DataConfig) -> datasets.Dataset:
    """Load rows as TRL's conversational prompt and completion; see `RowReader.check`."""
    rows = [*RowReader(data).rows()]
    if not rows:
        raise ConfigError(f"data {data.path[:SHOWN]!r} has no rows")
    turns = [
        {
            "prompt": [{"role": "user", "content": row.prompt}],
            "completion": [{"role": "assistant", "content": row.response}],
        }
        for row in rows
    ]
    return datasets.Dataset.from_list(turns)


def rows_fingerprint(rows: Iterable[Any]) -> str:
    """Hash rows in their order, so that a resumed run recognizes its data."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()[:16]
