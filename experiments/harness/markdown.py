"""Rows and numbers as Markdown."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from riprap._text import escape_control_chars

NOTHING = "–"


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a Markdown table; its columns are the keys of the first row."""
    if not rows:
        return "(no rows)"
    columns = list(rows[0])
    lines = [[cell(column) for column in columns], ["---"] * len(columns)]
    lines += [[cell(row[column]) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: object) -> str:
    """Return the text of a cell: one line, no other cell, no element and no link."""
    text = escape_control_chars(str(value)).replace("\n", " ").replace("\t", " ")
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text).replace("](", r"]\(")
    return re.sub(r"(\\*)\|", lambda bar: 2 * bar[1] + r"\|", text)


def number(value: object, digits: int = 0) -> str:
    """Format a number with a fixed number of digits; a dash where there is none."""
    if value is None or np.isnan(known := float(str(value))):
        return NOTHING
    if np.isinf(known):
        return "∞" if known > 0 else "−∞"
    text = f"{known:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def median_range(
    values: Sequence[float | None] | np.ndarray, digits: int = 0, middle: str = "median"
) -> str:
    """Format the numbers among values as `median [min, max]`, or the mean in its place."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    if not len(known):
        return NOTHING
    center = np.mean(known) if middle == "mean" else np.median(known)
    ends = ", ".join(number(end, digits) for end in (known.min(), known.max()))
    return f"{number(center, digits)} [{ends}]"


def count_of_total(hits: int, total: int) -> str:
    """Format a count as `hits of total (percent)`."""
    return f"{hits} of {total} ({hits / total:.0%})" if total else "0 of 0"


def commit() -> str:
    """Return the short hash of the working tree's commit, for the head of a page."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def fill(template: Path, **values: Any) -> str:
    """Fill the placeholders of a page; lists of rows become tables.

    Lines of a paragraph may be wrapped in the template.
    """
    text = re.sub(r"(?<!\n)\n(?![\n#|!-])", " ", template.read_text(encoding="utf-8").strip())
    tables = {n: table(own) if isinstance(own, list) else own for n, own in values.items()}
    return text.format(**tables) + "\n"
