"""The page on more evidence: its code runs, and finds what the page says."""

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


def test_the_addition_was_eroded_and_returns_on_the_path(names: dict[str, Any]) -> None:
    path, name = names["path"], names["adding"].name
    assert path.behaviors[name].scores[0] < 0.9
    assert path.behaviors[name].scores[-1] == 1
    assert 0 < path.first_at_floor(name) < 1


def test_requests_are_still_distinguished(names: dict[str, Any]) -> None:
    assert names["decoded"].retained.mean > 0.9


def test_the_figure_shows_what_was_found(names: dict[str, Any], tmp_path: Path) -> None:
    distance = names["distance"]
    drawn = json.loads(json.dumps(divergence_figure(distance).to_dict()))
    rows = [row for rows in _data(drawn) for row in json.loads(rows)]
    means = [row["mean"] for row in rows if row.get("direction", "").startswith("KL(reference")]
    assert means == [one.mean for one in distance.forward_at]
    layer = distance.most_causal_layer
    bars = [row["value"] for row in rows if row.get("name") == layer.layer]
    assert bars == [layer.relative_change, layer.activation_change.mean, layer.restored_share]
    assert save_figure(divergence_figure(distance), tmp_path / "figure.svg").stat().st_size > 5000


def _data(drawn: Any) -> list[str]:
    """Values of all data sets in a figure, stored as text."""
    if isinstance(drawn, str):
        return [drawn] if drawn.startswith("[{") else []
    parts = drawn.values() if isinstance(drawn, dict) else drawn if isinstance(drawn, list) else []
    return [text for part in parts for text in _data(part)]


def test_names_of_layers_are_short_and_each_there_once() -> None:
    found = short_names(["model.embed", "model.layers.0", "model.layers.1", "other.0", "lm_head"])
    assert found == ["embed", "0", "1", "other.0", "lm_head"]
