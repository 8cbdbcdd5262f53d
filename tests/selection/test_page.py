"""The page on selection: its code runs, and its table has every strategy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from riprap.selection.strategies import ALL_STRATEGIES

PAGE = Path(__file__).parents[2] / "docs" / "selection.md"


def test_its_code_runs() -> None:
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"<!-- runs -->\n```python\n(.*?)```", text, re.S)
    assert len(found) == 2
    names: dict[str, Any] = {"__name__": "docs"}
    for block in found:
        exec(block, names)
    assert [(len(taken.rows), taken.batch_size) for taken in names["selector"].history] == [
        (2, 10)
    ] * 5
    assert len(names["norms"]) == 10
    assert len(names["rows"]) == 10


def test_its_table_has_every_strategy() -> None:
    table = PAGE.read_text(encoding="utf-8")
    assert all(f"`{kind.name}`" in table for kind in ALL_STRATEGIES)
