"""Probes of one's own: a JSONL file whose rows are like those of a pack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from riprap.errors import BehaviorError

SUFFIX = ".jsonl"
SHOWN = 120  # characters of a name that a message repeats
# What a row holds decides what is measured: a choice, the first token of an answer, an opening.
CHOICE, COMPLETION, OPENING = ("prompt", "options", "answer"), ("prompt", "completion"), ("prompt",)
_TYPES: dict[str, type] = {"prompt": str, "completion": str, "options": list, "answer": int}


def kind_of(row: dict[str, Any]) -> tuple[str, ...]:
    """Which of the three kinds a row is; other fields do not count. Empty where it is none."""
    if not {"prompt"} <= set(row):
        return ()
    if {"options", "answer"} & set(row):
        return CHOICE if {"options", "answer"} <= set(row) else ()
    return COMPLETION if "completion" in row else OPENING


def read(file: str | Path) -> list[dict[str, Any]]:
    """The rows of a file.

    Raises:
        BehaviorError: no such file, a line that is no row, rows of two kinds, or a prompt twice.
    """
    named = f"probes {str(file)[:SHOWN]!r}"
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError, RuntimeError) as error:
        raise BehaviorError(f"{named} cannot be read: {str(error)[:SHOWN]}") from error
    # JSON may hold other line ends than this one in its strings.
    lines = [(at, line) for at, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise BehaviorError(f"{named}: the file is empty; give a row a line")
    rows: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for at, line in lines:
        row = _row(line, f"{named}, line {at}")
        if rows and kind_of(row) != kind_of(rows[0]):
            raise BehaviorError(
                f"{named}: line {at} has {' + '.join(kind_of(row))}, and the first "
                f"{' + '.join(kind_of(rows[0]))}: one file holds one kind of rows"
            )
        if row["prompt"] in seen:
            raise BehaviorError(
                f"{named}: line {at} has the prompt of line {seen[row['prompt']]} again: what is "
                "learned must be none of what measures"
            )
        seen[row["prompt"]] = at
        rows.append(row)
    return rows


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BehaviorError(f"{where} is not JSON: {error}") from error
    kind = kind_of(row) if isinstance(row, dict) else ()
    if not kind:
        kinds = "; or ".join(" + ".join(fields) for fields in (CHOICE, COMPLETION, OPENING))
        raise BehaviorError(f"{where}: a row has {kinds}")
    for field in kind:
        value = row[field]
        if not isinstance(value, _TYPES[field]) or isinstance(value, bool):
            raise BehaviorError(
                f"{where}: {field!r} is {type(value).__name__}, and should be "
                f"{_TYPES[field].__name__}"
            )
        if isinstance(value, str) and not value.strip():
            raise BehaviorError(f"{where}: {field!r} is empty")
    if kind == CHOICE:
        _check_options(row["options"], row["answer"], where)
    return dict(row)


def _check_options(options: list[Any], answer: int, where: str) -> None:
    if len(options) < 2 or not all(isinstance(one, str) and one.strip() for one in options):
        raise BehaviorError(f"{where}: 'options' are two texts or more")
    if not 0 <= answer < len(options):
        raise BehaviorError(
            f"{where}: 'answer' is {answer}, and should be the right option's index, from 0 to "
            f"{len(options) - 1}"
        )
