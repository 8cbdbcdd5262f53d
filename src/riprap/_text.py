"""Texts from elsewhere: escaped, shortened, reduced to their first line."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

MAX_NAME_LENGTH = 200  # characters of a name
MAX_HARMFUL = 40  # characters of a harmful request that are stored or shown
PAGE_MARK, PAGE_MARK_WITHIN = "· Riprap</title>", 100_000  # in the first characters of each page
PAGE_KIND = '<meta name="riprap-page" content="{}">'  # before the title

# Terminals obey control characters, and XML forbids most of them; bidirectional overrides change
# the order of the text around them; half of a surrogate pair is not a character.
_CONTROL_CHARS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def escape_control_chars(text: str) -> str:
    r"""Escape control and bidirectional characters, as in `\x1b`; line breaks are kept."""
    return _CONTROL_CHARS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def shorten(text: str, max_length: int = MAX_NAME_LENGTH) -> str:
    """Escape `text` and shorten it to one line of at most `max_length` characters."""
    line = escape_control_chars(text[: max_length + 1]).replace("\n", "\\n").replace("\t", "\\t")
    return line if len(line) <= max_length else line[: max_length - 1] + "…"


def first_line(text: object, otherwise: str) -> str:
    """Return the first line of a text that is not blank; `otherwise` for a blank text."""
    lines = str(text).strip().splitlines()
    return lines[0] if lines else otherwise


def error_text(error: Exception) -> str:
    """Return an error's type and message, escaped."""
    return escape_control_chars(f"{type(error).__name__}: {error}")


def escape_nested(value: Any) -> Any:
    """Escape all texts in nested dicts and lists."""
    if isinstance(value, str):
        return escape_control_chars(value)
    if isinstance(value, dict):
        return {escape_control_chars(str(key)): escape_nested(part) for key, part in value.items()}
    if isinstance(value, list):
        return [escape_nested(part) for part in value]
    return value


def html_text(text: object, tag: str = "p") -> str:
    """Return a text as HTML: escaped, in one element without attributes."""
    return f"<{tag}>{html.escape(escape_control_chars(str(text)))}</{tag}>"


def html_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as HTML, all of its texts escaped."""
    lines = ["".join(html_text(cell, "td") for cell in row) for row in rows]
    head = "".join(html_text(heading, "th") for heading in headings)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
