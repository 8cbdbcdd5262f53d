"""JSONL files of users, whose rows are like those of a shipped probe set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from riprap.errors import BehaviorError

SUFFIX = ".jsonl"
MAX_QUOTED = 120  # characters of a name that an error message repeats
# The fields of a row decide what is measured: a choice, an answer's first token, or how the
# response starts.
CHOICE, COMPLETION, PREFIX = ("prompt", "options", "answer"), ("prompt", "completion"), ("prompt",)
_TYPES: dict[str, type] = {"prompt": str, "completion": str, "options": list, "answer": int}


def row_format(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the fields that define a row's format; other fields are ignored. Empty: no format."""
    if not {"prompt"} <= set(row):
        return ()
    if {"options", "answer"} & set(row):
        return CHOICE if {"options", "answer"} <= set(row) else ()
    return COMPLETION if "completion" in row else PREFIX


def read_rows(file: str | Path) -> list[dict[str, Any]]:
    """Read the rows of a file: all of one format, and each prompt once."""
    where = f"probes {str(file)[:MAX_QUOTED]!r}"
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError, RuntimeError) as error:
        raise BehaviorError(f"{where} cannot be read: {str(error)[:MAX_QUOTED]}") from error
    # Only "\n" ends a line: JSON strings may contain other line separators.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise BehaviorError(f"{where}: the file is empty; give one row on each line")
    rows: list[dict[str, Any]] = []
    line_of: dict[str, int] = {}
    for number, line in lines:
        row = _parse_row(line, f"{where}, line {number}")
        if rows and row_format(row) != row_format(rows[0]):
            raise BehaviorError(
                f"{where}: line {number} has {' + '.join(row_format(row))}, and the first line "
                f"has {' + '.join(row_format(rows[0]))}; a file has rows of one format"
            )
        if row["prompt"] in line_of:
            raise BehaviorError(
                f"{where}: line {number} repeats the prompt of line {line_of[row['prompt']]}; give "
                "each prompt once, so that probes can be split into disjoint parts"
            )
        line_of[row["prompt"]] = number
        rows.append(row)
    return rows


def _parse_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BehaviorError(f"{where} is not JSON: {error}") from error
    fields = row_format(row) if isinstance(row, dict) else ()
    if not fields:
        formats = "; or ".join(" + ".join(known) for known in (CHOICE, COMPLETION, PREFIX))
        raise BehaviorError(f"{where}: a row needs the fields {formats}")
    for field in fields:
        value = row[field]
        if not isinstance(value, _TYPES[field]) or isinstance(value, bool):
            raise BehaviorError(
                f"{where}: {field!r} must be {_TYPES[field].__name__}, got {type(value).__name__}"
            )
        if isinstance(value, str) and not value.strip():
            raise BehaviorError(f"{where}: {field!r} is empty")
    if fields == CHOICE:
        _check_options(row["options"], row["answer"], where)
    return dict(row)


def _check_options(options: list[Any], answer: int, where: str) -> None:
    if len(options) < 2 or not all(isinstance(text, str) and text.strip() for text in options):
        raise BehaviorError(f"{where}: 'options' must be at least two texts")
    if not 0 <= answer < len(options):
        raise BehaviorError(
            f"{where}: 'answer' must be the index of the right option, from 0 to "
            f"{len(options) - 1}, got {answer}"
        )
