"""Reports of long runs: fewer points are drawn, no spike is lost, and the facts are exact."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from riprap.record import Reader, Series, Writer
from riprap.report import _plot_data as plot_data
from riprap.report import run_figure, write_report
from riprap.report._run import BehaviorInfo, Run, load_run
from riprap.report._summary import cost_line
from riprap.types import Reading, ReadingStatus

A = BehaviorInfo("a")
EVERY = 2


def long_run(steps: int, folder: Path | None = None) -> Writer:
    """A run with a dip of the score at one evaluation, a spike of its margin, and a late break."""
    random = np.random.default_rng(0)
    writer = Writer(folder)
    writer.write_meta(behaviors=[{"name": "a", "floor": 0.9}])
    readings = []
    for step in range(steps + 1):
        if step:
            value = -3.0 if step == 700 else random.normal(0, 0.01)
            readings.append(Reading.of(step, "a", "interference", value, "margin"))
        if step % EVERY == 0:
            low = 4.0 - 1.5 * (step == 502) - 8.0 * (step >= steps - 11)
            margins = low + np.linspace(0, 2, 20) + random.normal(0, 0.01, 20)
            writer.add_margins(step, "a", margins)
            passed = float((margins > 0).mean()) - 0.05 * (step == 602)
            readings += [
                Reading.of(step, "a", "margin", float(margins.mean()), "logits"),
                Reading.of(step, "a", "margin_low", float(margins.min()), "logits"),
                Reading.of(step, "a", "score", passed, "share"),
                Reading.of(step, "a", "kl_start", 9.0 if step == 802 else float(random.random())),
            ]
            lack = ReadingStatus.INSUFFICIENT
            readings += [
                Reading(step, "a", f"forecast_{part}", None, "steps", lack, detail="not within")
                for part in ("median", "low", "high")
            ]
    writer.add_readings(readings)
    writer.flush()
    return writer


def text_of(page: Path) -> str:
    """The sentences of a page, without its scripts."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"<(script|style).*?</\1>", " ", text, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))


def rows_of(figure: dict[str, Any]) -> int:
    """Number of data rows in a figure."""
    return sum(len(json.loads(rows)) for rows in figure["datasets"].values())


@pytest.fixture
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot_data, "MAX_POINTS", 100)
    monkeypatch.setattr(plot_data, "EXACT_STEPS", 30)
    monkeypatch.setattr(plot_data, "BINS", 90)


def test_what_is_drawn_does_not_grow_with_the_run(few_points: None) -> None:
    short, long = (
        rows_of(run_figure(load_run(long_run(steps))).to_dict()) for steps in (1500, 4500)
    )
    assert long <= 1.1 * short
    assert 300 < long < 1500


def test_no_spike_is_lost(few_points: None) -> None:
    run = load_run(long_run(2000))
    scores = {row["step"]: row["score"] for row in plot_data.score_rows(run, A)}
    margins = {row["step"]: row for row in plot_data.margin_rows(run, A)}
    assert len(scores) < 150 and len(margins) < 250
    assert scores[602] == pytest.approx(0.95) and {0, 2000} < set(scores)
    assert margins[502]["low"] == pytest.approx(2.5, abs=0.1)
    assert margins[502]["p90"] > margins[502]["mean"] > margins[502]["p10"]
    bars = plot_data.bar_rows(run.values("a", "interference"), run.values("a", "margin"))
    (spike,) = [bar for bar in bars if bar["value"] < -1]
    assert spike["step"] < 700 <= spike["end"] and spike["value"] == -3.0
    falls = [row for row in plot_data.realized_rows(run, A) if row["value"] < -0.5]
    assert any(row["step"] <= 500 < row["end"] for row in falls)


def test_the_sentences_are_about_all_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_run(900, tmp_path / "run").close()
    write_report(tmp_path / "run", tmp_path / "all.html")
    monkeypatch.setattr(plot_data, "MAX_POINTS", 20)
    write_report(tmp_path / "run", tmp_path / "few.html")
    everything, few = text_of(tmp_path / "all.html"), text_of(tmp_path / "few.html")
    note = re.search(r" A long run: .*? about all of them\. ", few)
    assert note is not None and "A long run" not in everything
    assert few.replace(note[0], " ") == everything
    assert "At step 890 the score was" in few
    assert "1,353, steps 0 to 900" in few  # readings that are missing


def test_a_figure_says_that_it_leaves_out_readings(few_points: None) -> None:
    def lines(steps: int) -> str:
        return " ".join(run_figure(load_run(long_run(steps))).to_dict()["title"]["subtitle"])

    assert "smallest and its largest" in lines(1000)
    assert "smallest and its largest" not in lines(90)


def test_a_report_makes_no_object_for_each_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = long_run(1000, tmp_path / "run")
    made: list[int] = []

    def count(self: Reading) -> None:
        made.append(1)

    monkeypatch.setattr(Reading, "__post_init__", count)
    write_report(writer, tmp_path / "page.html")
    assert len(made) < 20
    made.clear()
    assert len(Reader(writer).readings()) == len(made) > 4000


def test_a_bar_spans_the_steps_that_its_reading_covers() -> None:
    interference = Series([(2, -1.0), (4, 0.5), (9, -2.0), (10, 0.25)])
    bars = plot_data.bar_rows(interference, [0, 4, 8])
    shown = [(bar["step"], bar["end"], bar["value"], bar["steps"]) for bar in bars]
    assert shown == [
        (0, 2, -0.5, "1 to 2"),
        (2, 4, 0.25, "3 to 4"),
        (8, 9, -2.0, "9"),
        (9, 10, 0.25, "10"),
    ]


def test_bars_of_every_step_are_as_they_were() -> None:
    random = np.random.default_rng(1)
    values = {step: float(random.normal()) for step in range(1, 5001)}
    size = -(-(5000 - plot_data.EXACT_STEPS) // plot_data.BINS)
    expected = []
    for step in range(1, 5001):
        if step > plot_data.EXACT_STEPS and (step - plot_data.EXACT_STEPS - 1) % size:
            continue
        group = range(step, step + 1)
        if step > plot_data.EXACT_STEPS:
            group = range(step, min(step + size, 5001))
        inside = [values[one] for one in group]
        expected += [(step - 1, group[-1], v) for v in (min(inside),) if v < 0]
        expected += [(step - 1, group[-1], v) for v in (max(inside),) if v > 0]
    bars = plot_data.bar_rows(Series(values.items()), range(0, 5001, 20))
    assert [(bar["step"], bar["end"]) for bar in bars] == [one[:2] for one in expected]
    assert [bar["value"] for bar in bars] == [plot_data.round_for_plot(v) for *_, v in expected]


def run_with_cost(**facts: Any) -> Run:
    writer = Writer()
    writer.add_event(5, "cost", share=0.9)
    writer.add_event(9, "cost", **facts)
    return load_run(writer)


def test_the_cost_of_the_monitor_is_one_line() -> None:
    run = run_with_cost(
        budget=0.03,
        share=0.0284,
        training_seconds=700.0,
        seconds={"evaluations": 12.34, "refreshes": 8.0, "hooks": 0.0, "start": 0.021},
        counts={"start": 1, "evaluations": 1200, "refreshes": 14, "hooks": 5000},
        cut_urgency=2,
    )
    assert cost_line(run) == (
        "the monitor took 20.4 s: evaluations 12.3 s, "
        "refreshes 8.00 s, start 0.0210 s · 1 evaluation at the start · 1,200 evaluations without "
        "gradients · 14 with gradients · 2 times the budget "
        "could not pay for an urgent evaluation"
    )


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, ""),
        ({"share": "much"}, ""),
        ({"share": True}, ""),
        ({"share": 0.02}, "the monitor took 2.0% of training"),
        (
            {"share": 0.02, "budget": None, "seconds": ["a"], "counts": {"evaluations": "x"}},
            "the monitor took 2.0% of training",
        ),
    ],
)
def test_a_cost_that_is_not_recorded_is_not_shown(facts: dict[str, Any], expected: str) -> None:
    assert cost_line(run_with_cost(**facts)) == expected


def test_the_page_shows_the_cost_if_it_is_recorded(tmp_path: Path) -> None:
    writer = long_run(20)
    write_report(writer, tmp_path / "old.html")
    writer.add_event(20, "cost", share=0.021, budget=0.03)
    write_report(writer, tmp_path / "new.html")
    line = "the monitor took 2.1% of training (budget: 3.0%)"
    assert line in text_of(tmp_path / "new.html")
    assert "the monitor took" not in text_of(tmp_path / "old.html")


def test_a_run_without_interference_is_drawn(tmp_path: Path) -> None:
    writer = Writer()
    writer.write_meta(behaviors=[{"name": "a", "floor": 0.9}])
    for step in (0, 5):
        writer.add_margins(step, "a", np.ones(4))
        writer.add_readings([Reading.of(step, "a", name, 1.0) for name in ("margin", "score")])
    page = write_report(writer, tmp_path / "page.html")
    assert "A long run" not in text_of(page)
    assert plot_data.bar_rows(load_run(writer).values("a", "interference")) == []
