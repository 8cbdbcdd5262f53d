"""Rows of a JSON Lines file, one at a time: what is wrong with a line is said with its number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riprap.commands._models import SHOWN
from riprap.commands.select._config import SelectConfig
from riprap.commands.watch import field_text
from riprap.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        number: of its line in the file, from 1.
    """

    number: int
    prompt: str
    response: str
    id: str | None
    category: str | None


@dataclass(frozen=True)
class Survey:
    """What a whole file came to.

    Attributes:
        rows: how many rows it has.
        digest: a hash of its bytes.
    """

    rows: int
    digest: str


def survey(config: SelectConfig) -> Survey:
    """Read the file once, before anything is computed, so that a bad line at its end costs nothing.

    Raises:
        ConfigError: no such file, no rows, or what is wrong with which line.
    """
    digest, count = hashlib.sha256(), 0
    for number, line in raw_lines(config.data.path):
        digest.update(line)
        row_of(number, line, config)
        count += 1
    if count == 0:
        raise ConfigError(f"data {config.data.path[:SHOWN]!r} has no rows")
    return Survey(count, digest.hexdigest()[:16])


def rows(config: SelectConfig, done: int = 0) -> Iterator[Row]:
    """Rows after the first `done`, read as they are asked for."""
    for at, (number, line) in enumerate(raw_lines(config.data.path)):
        if at >= done:
            yield row_of(number, line, config)


def raw_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1, as they stand in the file.

    Raises:
        ConfigError: the file cannot be read, or is of another format by its name.
    """
    shown = path[:SHOWN]
    try:
        file = Path(path).expanduser()
        if file.suffix in (".csv", ".parquet", ".json"):
            raise ConfigError(
                f"data {shown!r}: `riprap select` reads JSON Lines, one object a line, in a file "
                "that ends in .jsonl"
            )
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line
    except (OSError, RuntimeError, ValueError) as error:  # no such user; NUL in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"data {shown!r} cannot be read: {str(reason)[:SHOWN]}") from error


def row_of(number: int, line: bytes, config: SelectConfig) -> Row:
    """The row in a line.

    Raises:
        ConfigError: what is wrong with the line.
    """
    value = _parsed(number, line, config)
    try:
        prompt, response = (
            field_text(value, field, config.data)
            for field in (config.data.prompt, config.data.response)
        )
        own, category = (
            None if field is None else field_text(value, field, config.data)
            for field in (config.id, config.category)
        )
    except ConfigError as error:
        raise ConfigError(f"line {number} of {str(error)[: 3 * SHOWN]}") from error
    try:
        "".join((prompt, response, own or "", category or "")).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"line {number} of data {config.data.path[:SHOWN]!r} holds half of a surrogate pair, "
            "which is no character"
        ) from error
    return Row(number, prompt, response, own, category)


def _parsed(number: int, line: bytes, config: SelectConfig) -> dict[str, Any]:
    where = f"line {number} of data {config.data.path[:SHOWN]!r}"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {str(error)[:SHOWN]}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {type(value).__name__}, and no object with fields")
    return value
