"""The page on the four kinds of evidence: its code runs, and finds what it is said to find."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from riprap.report import save_figure
from riprap.report._divergence import divergence_figure, short_names

PAGE = Path(__file__).parents[2] / "docs" / "diagnosis-evidence.md"


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    found: dict[str, Any] = {"__name__": "docs"}
    for block in re.findall(r"<!-- runs -->\n```python\n(.*?)```", PAGE.read_text("utf-8"), re.S):
        exec(block, found)
    return found


def test_the_addition_was_washed_away_and_comes_back_on_the_way(names: dict[str, Any]) -> None:
    along = names["back"].behaviors["A"]
    assert along.scores[0] < 0.9
    assert along.scores[-1] == 1
    assert 0 < names["back"].first("A") < 1


def test_requests_are_still_told_apart(names: dict[str, Any]) -> None:
    assert names["told"].retained.mean > 0.9


def test_the_figure_shows_what_was_found(names: dict[str, Any], tmp_path: Path) -> None:
    apart = names["apart"]
    drawn = json.loads(json.dumps(divergence_figure(apart).to_dict()))
    rows = [row for rows in _data(drawn) for row in json.loads(rows)]
    means = [row["mean"] for row in rows if row.get("way", "").startswith("KL(reference")]
    assert means == [one.mean for one in apart.forward_at]
    bars = [row["value"] for row in rows if row.get("name") == apart.cause.layer]
    assert bars == [apart.cause.relative, apart.cause.activation.mean, apart.cause.back]
    assert save_figure(divergence_figure(apart), tmp_path / "figure.svg").stat().st_size > 5000


def _data(drawn: Any) -> list[str]:
    """The values of every data set in a figure, which are kept as text."""
    if isinstance(drawn, str):
        return [drawn] if drawn.startswith("[{") else []
    parts = drawn.values() if isinstance(drawn, dict) else drawn if isinstance(drawn, list) else []
    return [text for part in parts for text in _data(part)]


def test_names_of_layers_are_short_and_each_there_once() -> None:
    found = short_names(["model.embed", "model.layers.0", "model.layers.1", "other.0", "lm_head"])
    assert found == ["embed", "0", "1", "other.0", "lm_head"]
