"""Rows of data files: JSON lines or CSV, with the fields that a task needs."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from riprap.errors import ConfigError

Row = dict[str, Any]


def read_jsonl(file: Path, fields: Sequence[str]) -> list[Row]:
    """Return the rows of a file (.jsonl or .csv), which all have `fields`.

    Raises:
        ConfigError: the file is missing or malformed, has no rows, or one lacks a field.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file} cannot be read: {error}; give the folder of the data, or set RIPRAP_DATA to it"
        ) from error
    rows = _csv_rows(text) if file.suffix == ".csv" else _json_rows(text, file)
    if not rows:
        raise ConfigError(f"{file} has no rows; give at least one")
    for number, row in enumerate(rows, 1):
        missing = [field for field in fields if _is_missing(row.get(field))]
        if missing:
            raise ConfigError(f"row {number} of {file} has no {missing[0]!r}, or an empty one")
    return rows


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _csv_rows(text: str) -> list[Row]:
    return [dict(row) for row in csv.DictReader(text.splitlines(keepends=True))]


def _json_rows(text: str, file: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"line {number} of {file} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"line {number} of {file} is not a JSON object")
        rows.append(row)
    return rows


def spread(rows: Sequence[Row], n: int | None) -> list[Row]:
    """Return `n` evenly spaced rows; all of them where there are no more, or `n` is None."""
    if n is None or n >= len(rows):
        return list(rows)
    return [rows[index * len(rows) // n] for index in range(n)]
