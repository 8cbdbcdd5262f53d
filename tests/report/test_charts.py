"""The figures show the numbers of the record, and can be written without a browser."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from report.synthetic import Scene, typical
from riprap.errors import ConfigError
from riprap.record import Series, Writer
from riprap.report import _plot_data as plot_data
from riprap.report import _style as style
from riprap.report import run_figure, save_figure
from riprap.report._charts import add_step_range
from riprap.report._run import BehaviorInfo, Run, load_run
from riprap.report._signal_panels import signal_panels
from riprap.types import Alert, Forecast, Level, Reading

NASTY = [
    "</script><script>alert(1)</script>",
    "a\"b'c\\ {{ 7 * 7 }} & \u2028",
    "datum.step || alert(1)",
    "行为",
]


@pytest.fixture(scope="module")
def run() -> Run:
    return load_run(typical(None).writer)


def drawn(spec: dict[str, Any]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Every layer of a figure with its rows of data."""
    found: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "mark" in node and "name" in node.get("data", {}):
                found.append((node, json.loads(spec["datasets"][node["data"]["name"]])))
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(spec)
    return found


def rules(spec: dict[str, Any], color: str) -> list[int]:
    """Steps at which vertical rules of a color stand."""
    return [
        data[0]["step"]
        for layer, data in drawn(spec)
        if layer["mark"].get("color") == color and "x" in layer["encoding"] and len(data) == 1
    ]


def single(forecasts: dict[int, tuple[float, float, float]], low: float = 4.0) -> Run:
    """A run of one behavior whose threshold margin is `low` at each visit."""
    writer = Writer()
    writer.write_meta(behaviors=[{"name": "a", "floor": 0.9}])
    for step, forecast in forecasts.items():
        named = dict(zip(("median", "low", "high"), forecast, strict=True))
        writer.add_readings(
            [Reading(step, "a", "margin_low", low), Reading(step, "a", "score", 1.0)]
        )
        writer.add_readings(
            Reading(step, "a", f"forecast_{name}", value)
            for name, value in named.items()
            if value < math.inf
        )
    return load_run(writer)


A = BehaviorInfo("a")


def test_the_figure_contains_every_measured_score_and_margin(run: Run) -> None:
    layers = drawn(run_figure(run).to_dict())
    for info in run.behaviors:
        scores = [
            (step, plot_data.round_for_plot(v))
            for step, v in run.values(info.name, "score").items()
        ]
        means = [
            (step, plot_data.round_for_plot(v))
            for step, v in run.values(info.name, "margin").items()
        ]
        shown = [[(row.get("step"), row.get("score")) for row in data] for _, data in layers]
        assert scores in shown
        shown = [[(row.get("step"), row.get("mean")) for row in data] for _, data in layers]
        assert means in shown


def test_the_band_is_the_quantiles_of_the_probes(run: Run) -> None:
    refusal = run.behaviors[0]
    for row in plot_data.margin_rows(run, refusal):
        margins = run.margins["refusal"][row["step"]].astype(float)
        assert (row["p10"], row["p90"]) == pytest.approx(np.quantile(margins, [0.1, 0.9]), rel=1e-4)


def test_first_alerts_and_break_stand_in_all_three_panels(run: Run) -> None:
    spec = run_figure(run).to_dict()
    critical = run.first_alerts("refusal")[Level.CRITICAL].step
    broke = run.broken_at(run.behaviors[0])
    assert broke is not None
    assert rules(spec, style.BREAK) == [broke] * 3
    assert rules(spec["vconcat"][0] | {"datasets": spec["datasets"]}, "#a3123f") == [critical] * 3


def test_a_calm_run_shows_no_alert_and_no_break() -> None:
    scene = Scene(None, ["calm"], 60)
    scene.fading("calm", 9.0, 0.001, 8.0)
    spec = run_figure(scene.writer).to_dict()
    assert [rules(spec, color) for color in (style.BREAK, *style.LEVELS.values())] == [[]] * 4


def test_levels_differ_without_color() -> None:
    assert len({tuple(dash) for dash in style.DASHES.values()}) == len(Level)

    def lightness(color: str) -> float:
        return sum(int(color[i : i + 2], 16) * w for i, w in ((1, 0.3), (3, 0.59), (5, 0.11)))

    shades = [lightness(style.LEVELS[level]) for level in Level]
    assert shades[0] - shades[1] > 20
    assert shades[1] - shades[2] > 20


def test_a_segment_runs_from_the_threshold_margin_to_its_forecast() -> None:
    found = plot_data.segment_rows(single({10: (8, 6, 11), 20: (math.inf, 30, math.inf)}), A)
    assert [(row["step"], row["low"], row["end"]) for row in found] == [(10, 4.0, 18)]


def test_the_standing_cone_is_the_interval_on_the_line_of_zero() -> None:
    found = plot_data.cone_rows(single({10: (8, 6, 11)}), A, right=30)
    corners = [(row["step"], row["lower"], row["upper"]) for row in found]
    assert corners == [(10, 4.0, 4.0), (16, 0.0, pytest.approx(4 * 5 / 11, rel=1e-4)), (21, 0, 0)]


def test_a_cone_without_an_upper_bound_runs_to_the_edge() -> None:
    found = plot_data.cone_rows(single({10: (math.inf, 6, math.inf)}), A, right=30)
    assert [row["step"] for row in found] == [10, 16, 30]
    assert "beyond the horizon" in found[0]["forecast"] or "earliest" in found[0]["forecast"]


def test_no_cone_where_nothing_is_left_to_fall_or_to_forecast() -> None:
    assert plot_data.cone_rows(single({10: (8, 6, 11)}, low=-0.1), A, right=30) == []
    assert plot_data.cone_rows(single({10: (math.inf, math.inf, math.inf)}), A, right=30) == []


def test_alerts_keep_their_cones_after_the_break() -> None:
    writer = Writer()
    writer.write_meta(behaviors=[{"name": "a", "floor": 0.9}])
    for step, score, low in ((0, 1.0, 4.0), (10, 1.0, 2.0), (20, 0.5, -1.0)):
        writer.add_readings(
            [Reading(step, "a", "score", score), Reading(step, "a", "margin_low", low)]
        )
    writer.add_alert(Alert(10, "a", Level.CRITICAL, "f", "", (), Forecast(8, 6, 11, 50)))
    found = plot_data.cone_rows(load_run(writer), A, right=20)
    assert {row["name"] for row in found} == {"forecast of the first critical alert"}
    assert found[0]["step"] == 10


def test_room_is_left_for_a_standing_forecast_only() -> None:
    assert plot_data.last_shown_step(single({100: (8, 6, 11)})) == 111
    assert plot_data.last_shown_step(single({100: (400, 300, 500)})) == 126
    assert plot_data.last_shown_step(single({100: (math.inf,) * 3})) == 100


def test_bars_stand_on_their_steps_and_say_their_direction() -> None:
    bars = plot_data.bar_rows(Series([(1, -0.5), (2, 0.25), (3, 0.0)]))
    shown = [(bar["step"], bar["end"], bar["value"], bar["color"]) for bar in bars]
    assert shown == [(0, 1, -0.5, style.DOWN), (1, 2, 0.25, style.UP)]


def test_late_bars_of_a_long_run_span_the_extremes() -> None:
    random = np.random.default_rng(0)
    interference = {step: float(random.normal()) for step in range(1, 10_001)}
    bars = plot_data.bar_rows(Series(interference.items()))
    assert len(bars) < 2 * (plot_data.EXACT_STEPS + plot_data.BINS)
    assert min(bar["value"] for bar in bars) == plot_data.round_for_plot(min(interference.values()))
    assert max(bar["value"] for bar in bars) == plot_data.round_for_plot(max(interference.values()))
    early = [bar["value"] for bar in bars if bar["end"] <= plot_data.EXACT_STEPS]
    assert early == [
        plot_data.round_for_plot(interference[step]) for step in range(1, plot_data.EXACT_STEPS + 1)
    ]
    assert max(bar["end"] for bar in bars) == 10_000


def test_the_realized_change_is_a_slope_between_visits() -> None:
    writer = Writer()
    writer.add_readings([Reading(step, "a", "margin", value) for step, value in ((0, 5), (4, 3))])
    (row,) = plot_data.realized_rows(load_run(writer), A)
    assert (row["step"], row["end"], row["value"]) == (0, 4, -0.5)


def test_a_thinned_line_keeps_its_extremes_and_its_order() -> None:
    values = {step: math.sin(step) for step in range(1000)} | {500: 9.0, 700: -9.0}
    series = Series(values.items())
    thin = plot_data.thin(series, 100)
    assert len(thin) <= 102
    assert {0, 999} < set(thin)
    assert (thin[500], thin[700]) == (9.0, -9.0)
    assert list(thin) == sorted(thin)
    assert plot_data.thin(series, 5000) == series


def test_signal_panels_show_the_other_signals(run: Run) -> None:
    found = {one.signal: one for one in signal_panels(run)}
    assert set(found) == {
        "cosine_margin",
        "projection_ratio",
        "drift_mean",
        "norm_gradient",
        "norm_update",
        "subspace_overlap",
    }
    assert found["drift_mean"].panels == 3
    spec = found["subspace_overlap"].chart.to_dict()
    (data,) = spec["datasets"].values()
    shown = json.loads(data)
    assert {row["panel"] for row in shown} == {"refusal|arithmetic"}
    assert [row["reference"] for row in shown if "reference" in row] == [0.25]


def test_save_writes_svg_png_and_html(run: Run, tmp_path: Path) -> None:
    figure = run_figure(run)
    svg = save_figure(figure, tmp_path / "new" / "lanes.svg").read_text()
    for text in ("toy world under C", "refusal", "broke at step", "floor 0.9", "optimizer step"):
        assert text in svg
    assert save_figure(figure, tmp_path / "lanes.png").read_bytes().startswith(b"\x89PNG")
    page = save_figure(figure, tmp_path / "lanes.html").read_text()
    assert "vegaEmbed" in page
    assert not re.search(r"<(script|link)[^>]*(src|href)=", page)


def test_save_refuses_other_kinds(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"figure\.gif: the name must end in \.svg"):
        save_figure(run_figure(run), tmp_path / "figure.gif")


def test_names_are_text_in_a_figure_whatever_they_hold(tmp_path: Path) -> None:
    scene = Scene(None, NASTY, 20)
    for name in NASTY:
        scene.fading(name)
    figure = run_figure(scene.writer)
    svg = save_figure(figure, tmp_path / "nasty.svg").read_text()
    assert "<script" not in svg
    assert "datum.step || alert(1)" in svg
    assert "7 * 7" in svg
    page = save_figure(figure, tmp_path / "nasty.html").read_text()
    assert "alert(1)</script>" not in page
    for one in signal_panels(load_run(scene.writer)):
        shown = add_step_range(one.chart, load_run(scene.writer))
        assert "datum.step || alert(1)" in save_figure(shown, tmp_path / "one.svg").read_text()


def test_a_run_without_readings_can_still_be_drawn(tmp_path: Path) -> None:
    assert (
        "nothing has been measured"
        in save_figure(run_figure(Writer()), tmp_path / "a.svg").read_text()
    )
