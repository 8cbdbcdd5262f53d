"""Text that somebody else wrote, shown as text: nothing in it acts on what shows it."""

from __future__ import annotations

import re
from typing import Any

MAX_NAME_LENGTH = 200  # characters of a name

# Control characters command a terminal, and XML knows most of them not at all; overrides of the
# direction of writing would turn round what stands beside them; half of a pair is no character.
_CONTROL_CHARS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def escape_control_chars(text: str) -> str:
    r"""`text` with every character that would act written out, as in `\x1b`; lines stay lines."""
    return _CONTROL_CHARS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shorten(text: str, max_length: int = MAX_NAME_LENGTH) -> str:
    """The same on one line, of at most `most` characters: for names, and lines of output."""
    line = escape_control_chars(text[: max_length + 1]).replace("\n", "\\n").replace("\t", "\\t")
    return line if len(line) <= max_length else line[: max_length - 1] + "…"


def escape_nested(value: Any) -> Any:
    """The same for all texts in nested dicts and lists."""
    if isinstance(value, str):
        return escape_control_chars(value)
    if isinstance(value, dict):
        return {escape_control_chars(str(key)): escape_nested(part) for key, part in value.items()}
    if isinstance(value, list):
        return [escape_nested(part) for part in value]
    return value
