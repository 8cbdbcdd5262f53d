"""Public texts that the worlds read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[4] / "shared" / "data"


def rows(name: str, data: Path) -> list[dict[str, Any]]:
    """Return the rows of `data/name.jsonl`.

    Raises:
        FileNotFoundError: the file is not there.
    """
    path = data / f"{name}.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: pass --data, a folder that has it")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def fields(name: str, keys: tuple[str, ...], data: Path) -> list[str]:
    """Return one text a row: its fields `keys`, a line each; a text that recurs comes once."""
    texts = ("\n".join(str(row[key]) for key in keys) for row in rows(name, data))
    return list(dict.fromkeys(texts))
