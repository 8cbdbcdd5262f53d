"""Rows of a data set: one loader for `riprap watch`, `riprap select` and `riprap diagnose`."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from pydantic import Field

from riprap._config import StrictModel
from riprap.commands._conversations import Fields, Row, as_text, look_up, read_row, recognize
from riprap.commands._files import DECODER, Source
from riprap.commands._models import SHOWN
from riprap.errors import ConfigError

if TYPE_CHECKING:
    import datasets

__all__ = [
    "DataConfig",
    "DataSummary",
    "Row",
    "RowReader",
    "load_rows",
    "read_rows",
    "rows_fingerprint",
]


class DataConfig(StrictModel):
    """Rows to train on, and the names of their fields; fields that are not named are recognized.

    Attributes:
        path: a file (JSON Lines, JSON, CSV, TSV, Parquet), a folder that `datasets.save_to_disk`
            wrote, or a Hugging Face dataset id.
        name, split: configuration and split of a dataset id; the split of a folder with several.
        messages: field with a list of turns, as OpenAI's `messages` or ShareGPT's `conversations`.
        prompt, response: fields with texts; a dot enters nested fields (`instances.0.output`).
        context: field with a text that is put after the prompt, as Alpaca's `input`.
        system: system prompt of rows that have none.
        chat_template_kwargs: arguments of the chat template, such as `enable_thinking: false`.
        response_prefix: text put before each response.
        limit: use the first rows only.
    """

    path: str
    name: str | None = None
    split: str | None = None
    messages: str | None = None
    prompt: str | None = None
    context: str | None = None
    response: str | None = None
    system: str | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    response_prefix: str = ""
    limit: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class DataSummary:
    """Contents of a data set.

    Attributes:
        rows: number of rows.
        digest: hash of the rows.
        kind: what the rows are, in words.
        notes: number of rows by what is unusual about them.
        unused: fields of the first row that are not read.
    """

    rows: int
    digest: str
    kind: str = ""
    notes: Counter[str] = field(default_factory=Counter)
    unused: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the summary as sentences without a stop, one per line."""
        noted = [f"{count:,} of {self.rows:,} rows {note}" for note, count in self.notes.items()]
        unread = ", ".join(self.unused)[:SHOWN]
        return [
            f"{self.rows:,} rows, read as {self.kind}",
            *noted,
            *([f"fields that are not read: {unread}"] if unread else []),
        ]


class RowReader:
    """Reader of the rows of a data set, in their order and one at a time.

    The fields are recognized by the first row; every other row must have them.

    Args:
        id, category: fields that identify a row and name its category.
    """

    def __init__(
        self, data: DataConfig, id: str | None = None, category: str | None = None
    ) -> None:
        if data.messages is not None and (data.prompt or data.response):
            raise ConfigError("`messages` has turns with their roles: remove `prompt`, `response`")
        self.data, self._id, self._category = data, id, category
        self.source = Source(data)
        self._fields: Fields | None = None

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Return the rows as JSON, with their numbers; lines of JSON Lines are unchanged."""
        return islice(self.source.lines(), self.data.limit)

    def parse(self, number: int, line: bytes) -> Row:
        """Parse a row; raise a ConfigError if it does not have the fields as text."""
        where = f"{self.source.unit} {number} of {self.source.name}"
        record = _decode_line(line, where)
        if self._fields is None:
            self._fields = recognize(record, self.data, where)
        row = read_row(number, record, self._fields, self.data, where)
        row_id, category = (
            None if name is None else as_text(look_up(record, name, where), name, where)
            for name in (self._id, self._category)
        )
        try:
            json.dumps((row.turns, row_id, category), ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{where} contains half of a surrogate pair, which is not a character"
            ) from error
        return replace(row, id=row_id, category=category)

    def rows(self, start: int = 0) -> Iterator[Row]:
        """Return the rows after the first `start`, read one at a time."""
        for number, line in islice(self.lines(), start, None):
            yield self.parse(number, line)

    def check(self) -> DataSummary:
        """Read and check every row.

        Raises:
            ConfigError: the data set cannot be read, has no rows, has a row that is wrong, or no
                row has anything to learn.
        """
        digest, notes, count, learned = hashlib.sha256(), Counter[str](), 0, False
        for number, line in self.lines():
            digest.update(line)
            row = self.parse(number, line)
            notes.update(row.notes)
            learned = learned or any(row.learned)
            count += 1
        return self._summary(count, digest.hexdigest()[:16], notes, learned)

    def _summary(self, count: int, digest: str, notes: Counter[str], learned: bool) -> DataSummary:
        if count == 0:
            raise ConfigError(f"{self.source.name} has no rows")
        if not learned:
            raise ConfigError(
                f"{self.source.name} has nothing to learn: none of its {count:,} rows has a turn "
                "of the assistant that counts"
            )
        assert self._fields is not None
        return DataSummary(count, digest, self._fields.kind, notes, self._fields.unused)

    def load(self) -> tuple[list[Row], DataSummary]:
        """Read all rows that have something to learn; see `check`."""
        rows = [*self.rows()]
        notes = Counter(note for row in rows for note in row.notes)
        taught = [row for row in rows if any(row.learned)]
        return taught, self._summary(len(rows), rows_fingerprint(rows), notes, bool(taught))


def _decode_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8: save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {str(error)[:SHOWN]}") from error
    if not isinstance(record, dict):
        kind = type(record).__name__.removeprefix("Written").lower()
        raise ConfigError(f"{where} is {kind}; an object with fields is needed")
    return record


def read_rows(data: DataConfig) -> tuple[list[Row], DataSummary]:
    """Read all rows that have something to learn, and a summary of the data set."""
    return RowReader(data).load()


def load_rows(data: DataConfig) -> datasets.Dataset:
    """Load rows as TRL's conversational prompt and completion; see `RowReader.check`.

    The completion begins with the first turn that is learned.
    """
    import datasets

    rows, _ = read_rows(data)
    turns = [
        {
            "prompt": list(row.turns[: row.first_learned]),
            "completion": list(row.turns[row.first_learned :]),
        }
        for row in rows
    ]
    return datasets.Dataset.from_list(turns)


def rows_fingerprint(rows: Iterable[Any]) -> str:
    """Hash rows in their order, so that a resumed run recognizes its data."""
    digest = hashlib.sha256()
    for row in rows:
        value = (row.turns, row.learned, row.tools) if isinstance(row, Row) else row
        digest.update(json.dumps(value, sort_keys=True).encode())
    return digest.hexdigest()[:16]
