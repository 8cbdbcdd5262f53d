"""Figures of the basin: what is drawn is what was measured, and they can be saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from riprap.diagnosis.basins._plane import Plane
from riprap.diagnosis.basins._profile import Basin, Profile, grid
from riprap.report._basin import basin_figure, contour, drift_figure, plane_figure
from riprap.report._charts import save_figure

ALPHAS = grid(5, 0.5)
SCORES = np.array([[0.2, 0.8, 1.0, 0.6, 0.0], [0.4, 1.0, 1.0, 0.8, 0.2]])


def found(directions: int = 2, judged: bool = False) -> Basin:
    scores = SCORES[:directions]
    one = Profile("refusal", 0.9, ALPHAS, scores, judged=scores / 2 if judged else None)
    return Basin(0, {"refusal": one, "</script>\x1b": Profile("b", 0.5, ALPHAS, scores)})


def rows(chart: Any) -> list[dict[str, Any]]:
    """All rows that a figure holds."""
    got: list[dict[str, Any]] = []

    def walk(part: Any) -> None:
        if isinstance(part, str) and part.startswith('[{"'):
            got.extend(json.loads(part))
        if isinstance(part, dict | list):
            for inner in part.values() if isinstance(part, dict) else part:
                walk(inner)

    walk(chart.to_dict())
    return got


def test_curves_show_mean_interval_and_answers(tmp_path: Path) -> None:
    chart = basin_figure(found(judged=True))
    drawn = [row for row in rows(chart) if row.get("behavior") == "refusal" and "alpha" in row]
    assert [row["mean"] for row in drawn] == pytest.approx(SCORES.mean(0))
    assert [row["answers"] for row in drawn] == pytest.approx(SCORES.mean(0) / 2)
    assert all(0 <= row["low"] <= row["mean"] <= row["high"] <= 1 for row in drawn)
    assert "VISAGE" in str(chart.to_dict()["title"])
    assert "\x1b" not in json.dumps(chart.to_dict(), ensure_ascii=False)
    for kind in ("svg", "png", "html"):
        assert save_figure(chart, tmp_path / f"basin.{kind}").stat().st_size > 1000


def test_one_direction_has_no_band() -> None:
    drawn = [row for row in rows(basin_figure(found(1))) if "low" in row]
    assert all(row["low"] == row["mean"] == row["high"] for row in drawn)
    assert not any("answers" in row for row in drawn)


def test_the_contour_lies_where_the_level_is() -> None:
    """Of a cone it is a circle: all pieces, none twice."""
    alphas = grid(41, 1.0)
    cone = 1 - np.hypot(*np.meshgrid(alphas, alphas))
    pieces = list(contour(alphas, cone, 0.4))
    ends = np.array(pieces)
    assert np.hypot(ends[..., 0], ends[..., 1]) == pytest.approx(0.6, abs=2e-3)
    around = np.hypot(*(ends[:, 0] - ends[:, 1]).T).sum()
    assert around == pytest.approx(2 * np.pi * 0.6, rel=5e-3)
    assert not list(contour(alphas, cone, 2.0))


def test_the_planes_first_axis_is_drawn_along_x(tmp_path: Path) -> None:
    scores = np.zeros((5, 5))
    scores[4, 2] = 1.0
    plane = Plane(0, ALPHAS, {"a": 0.5}, {"a": scores}, {"a": scores})
    chart = plane_figure(plane)
    (full,) = [row for row in rows(chart) if row.get("score") == 1.0]
    assert (full["x"] + full["x2"]) / 2 == pytest.approx(0.5)
    assert (full["y"] + full["y2"]) / 2 == pytest.approx(0.0)
    assert save_figure(chart, tmp_path / "plane.svg").stat().st_size > 1000


def test_the_drift_shows_each_checkpoint_in_order(tmp_path: Path) -> None:
    chart = drift_figure({"step 100": found(), "step 9": found(1)})
    drawn = [row for row in rows(chart) if row.get("what") == "VISAGE"]
    named = [row["checkpoint"] for row in drawn if row["behavior"] == "refusal"]
    assert named == ["step 100", "step 9"]
    assert drawn[0]["mean"] == pytest.approx(found()["refusal"].visage.mean)
    assert save_figure(chart, tmp_path / "drift.svg").stat().st_size > 1000
