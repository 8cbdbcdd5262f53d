"""Probes of one's own: a JSONL file whose rows are like those of a pack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from riprap.evidence import BehaviorError

SUFFIX = ".jsonl"
# What a row holds decides what is measured: a choice, the first token of an answer, an opening.
KINDS = (("prompt", "options", "answer"), ("prompt", "completion"), ("prompt",))
_TYPES: dict[str, type] = {"prompt": str, "completion": str, "options": list, "answer": int}


def kind_of(row: dict[str, Any]) -> tuple[str, ...]:
    """The fields of `KINDS` that a row has; other fields do not count."""
    return next((kind for kind in KINDS if all(field in row for field in kind)), ())


def read(file: str | Path) -> list[dict[str, Any]]:
    """The rows of a file.

    Raises:
        BehaviorError: no such file, a line that is no row, or rows of two kinds.
    """
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeError, RuntimeError) as error:
        raise BehaviorError(f"probes {str(file)!r} cannot be read: {error}") from error
    lines = [(at, line) for at, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise BehaviorError(f"probes {str(file)!r}: the file is empty; give a row a line")
    rows = [_row(line, f"probes {str(file)!r}, line {at}") for at, line in lines]
    kinds = {kind_of(row): at for row, (at, _) in zip(rows, lines, strict=True)}
    if len(kinds) > 1:
        raise BehaviorError(
            f"probes {str(file)!r}: line {max(kinds.values())} has {_named(max(kinds, key=len))}, "
            f"and another {_named(min(kinds, key=len))}: one file holds one kind of rows"
        )
    return rows


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BehaviorError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict) or not kind_of(row):
        raise BehaviorError(f"{where}: a row has {'; or '.join(map(_named, KINDS))}")
    for field in kind_of(row):
        if not isinstance(row[field], _TYPES[field]) or isinstance(row[field], bool):
            raise BehaviorError(
                f"{where}: {field!r} is {type(row[field]).__name__}, and should be "
                f"{_TYPES[field].__name__}"
            )
    return row


def _named(fields: tuple[str, ...]) -> str:
    return " + ".join(fields)
