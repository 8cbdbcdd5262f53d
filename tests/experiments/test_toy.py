"""Leads, false alarms, coverage and conclusions of constructed runs."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.harness.preregistration import Preregistration
from experiments.toy import curves, figures, quality, tables
from experiments.toy.analysis import Run, detector_rows
from experiments.toy.signal_panels import signals_figure
from riprap.detectors import BehaviorHistory
from riprap.record import Writer
from riprap.report import save_figure
from riprap.types import Alert, Level, Reading

STEPS, PROBES, FLOOR, HORIZON = 300, 40, 0.9, 50
AGES = (1, 4)
OFFSETS = np.linspace(-1, 1, PROBES)
NAMES = ("A", "B")
TERMS = Preregistration.parse(
    {
        "name": "test",
        "detectors": [{"kind": "forecast", "horizon": HORIZON}],
        "study": (Preregistration.named("toy").study or {})
        | {
            "steps": STEPS,
            "every": 5,
            "conditions": ["null", "C"],
            "confirmatory": [0],
            "null_seeds": [0],
            "exploratory": [1000],
            "claim_steps": 60,
            "ages": AGES,
            "trivial_check": 6,
            "slope_speedup": 2,
            "fixed": [{"signal": "drift_mean", "side": "above", "value": 0.5}],
        },
    },
    "the test's terms",
)


def falling(broke: int) -> np.ndarray:
    """Margins that fall in a straight line, so that the score is under the floor from `broke`.

    Exactly 4 of 40 probes may be at or below 0; the fifth lowest decides.
    """
    decider = np.sort(OFFSETS)[4]
    rate = 4.0 / (broke - 0.5)
    means = 4.0 - decider - rate * np.arange(STEPS + 1)
    return means[:, None] + OFFSETS


def calm() -> np.ndarray:
    return np.full((STEPS + 1, 1), 5.0) + OFFSETS


def make(
    folder: Path,
    condition: str,
    seed: int,
    margins: dict[str, np.ndarray],
    alerts: dict[str, tuple[int, Level]] | None = None,
    scale: float = 1.0,
) -> Run:
    """A finished run: predictions are `scale` times the realized change, older ones noise."""
    said = [Alert(s, n, lv, "forecast", "") for n, (s, lv) in (alerts or {}).items()]
    visits = list(range(0, STEPS + 1, 5))
    histories, arrays = {}, {}
    random = np.random.default_rng(seed)
    for name, values in margins.items():
        changes = np.diff(values.mean(1)) + random.normal(0, 0.1, STEPS)
        history = BehaviorHistory(name, FLOOR)
        for step in visits:
            history.add_margins(step, values[step])
        history.interference = dict(enumerate(np.diff(values.mean(1)), start=1))
        history.signals["drift_mean"] = [(step, step / STEPS) for step in visits]
        histories[name] = history
        arrays[f"truth/{name}"] = (values[::10] > 0).mean(1)
        stale = random.normal(0, 1, (len(AGES), 60))
        for row, age in zip(stale, AGES, strict=True):
            row[:age] = np.nan
        arrays[f"predicted/{name}"] = scale * changes[:60]
        arrays[f"realised/{name}"] = changes[:60]
        arrays[f"stale/{name}"] = stale
    path = folder / f"{condition}-{seed}"
    writer = Writer(path)
    for step in visits:
        overlap = 0.5 - 0.001 * step
        writer.add_readings([Reading.of(step, "", tables.OVERLAP, overlap, layer="last")])
    writer.add_readings([Reading.of(0, "", tables.CHANCE, 0.125)])
    writer.close()
    return Run(
        condition=condition,
        seed=seed,
        histories=histories,
        alerts=said,
        margins=margins,
        folder=path,
        arrays=arrays,
        cost=100,
    )


@pytest.fixture
def world(tmp_path: Path) -> list[Run]:
    """A breaks at 120 and 200 under C, with leads 20 and −5; B is calm but once called critical."""
    return [
        make(tmp_path, "null", 0, {"A": calm(), "B": calm()}),
        make(
            tmp_path, "C", 0, {"A": falling(120), "B": calm()},
            {"A": (100, Level.CRITICAL), "B": (60, Level.CRITICAL)},
        ),
        make(
            tmp_path, "C", 1, {"A": falling(200), "B": calm()},
            {"A": (205, Level.CRITICAL), "B": (60, Level.WATCH)},
        ),
    ]  # fmt: skip


def frame_of(runs: list[Run]) -> pd.DataFrame:
    return pd.concat([detector_rows(run, TERMS) for run in runs], ignore_index=True)


def cell(rows: list[dict[str, object]], column: str, **where: str) -> str:
    """One cell of a table."""
    found = [row for row in rows if all(str(row[k]) == v for k, v in where.items())]
    assert len(found) == 1, f"{where} found {len(found)} times in {rows}"
    return str(found[0][column])


def test_a_run_breaks_where_it_was_made_to(world: list[Run]) -> None:
    assert [run.broke("A") for run in world] == [None, 120, 200]
    assert all(run.broke("B") is None for run in world)


def test_leads_and_false_alarms_by_run(world: list[Run]) -> None:
    rows = tables.per_run(frame_of(world))
    assert cell(rows, "lead", condition="C", behavior="A", seed="0") == "20"
    assert cell(rows, "lead", condition="C", behavior="A", seed="1") == "−5"
    assert cell(rows, "false alarm", condition="C", behavior="A", seed="0") == "no"
    assert cell(rows, "false alarm", condition="C", behavior="B", seed="0") == "yes"
    assert cell(rows, "first critical", condition="C", behavior="B", seed="1") == "–"
    assert cell(rows, "first watch", condition="C", behavior="B", seed="1") == "60"
    assert cell(rows, "break", condition="null", behavior="A", seed="0") == "–"


def test_rows_by_detector(world: list[Run]) -> None:
    rows = tables.by_detector(frame_of(world))
    own = {"detector": "forecast", "condition": "C", "behavior": "A"}
    assert cell(rows, "breaks", **own) == "2"
    assert cell(rows, "alerted before", **own) == "1"
    assert cell(rows, "late or never", **own) == "1"
    assert cell(rows, "lead, median [min, max]", **own) == "8 [−5, 20]"
    assert cell(rows, "false criticals", **(own | {"behavior": "B"})) == "1"
    null = {"condition": "null", "behavior": "A"}
    loud = "null runs with a warning or above"
    assert cell(rows, loud, detector="forecast", **null) == "0"
    assert cell(rows, loud, detector="fixed thresholds", **null) == "1"
    assert cell(rows, loud, detector="trivial rule", **null) == "0"


def test_a_straight_fall_is_forecast_by_both(world: list[Run]) -> None:
    found = quality.forecasts(world, TERMS)
    for kind in ("forecast", "slope"):
        own = found[(found.detector == kind) & (found.behavior == "A")]
        measured = quality.measure(own, HORIZON)
        assert measured["breaks"] == 2
        assert measured["visits"] >= 2 * HORIZON / 5
        assert measured["inside"] >= 0.75 * measured["visits"]
        assert measured["absolute"] <= 3


def rows_of(*rows: tuple[int, float, float, float, float]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["step", "low", "median", "high", "remaining"])
    return frame.assign(condition="C", seed=0, behavior="A")


def test_coverage_and_error_are_counted_as_they_should() -> None:
    inf, nan = float("inf"), float("nan")
    measured = quality.measure(
        rows_of(
            (0, 5, 20, 40, 200),  # beyond the horizon, and critical: not kept
            (160, nan, nan, nan, 40),  # silent
            (165, 30, inf, inf, 35),  # inside, open
            (180, 2, 10, 15, 20),  # ends too early
            (190, 8.5, 9.5, 12, 10),  # inside; 9.5 is seen at step 10
            (195, 6.2, 8, 9, 5),  # begins too late
        ),
        HORIZON,
    )
    assert measured["visits"] == 5
    assert measured["silent"] == 1
    assert measured["inside"] == 2
    assert measured["closed"] == 3
    assert measured["error"] == pytest.approx((0 + 3) / 2)
    assert (measured["critical"], measured["kept"]) == (4, 3)


def test_gain_is_the_slopes_alert_minus_the_forecasts(world: list[Run]) -> None:
    frame = frame_of(world)
    slope = frame.detector == "slope"
    frame["critical"] = frame.critical.astype(float).where(~slope, frame.broke.astype(float) - 7)
    pairs = quality.paired(frame)
    found = quality.gains(pairs[pairs.broke.notna()], Level.CRITICAL)
    assert sorted(found) == [-12, 13]
    rows = quality.interference_gain(frame, world)["gains"]
    assert cell(rows, "forecast earlier", level="critical") == "1"
    assert cell(rows, "slope earlier", level="critical") == "1"
    assert cell(rows, "before the break, forecast", level="critical") == "1 of 2 (50%)"
    assert cell(rows, "before the break, slope", level="critical") == "2 of 2 (100%)"


@pytest.mark.parametrize(
    ("gain", "more_false", "words"),
    [
        (0.0, 0, "adds nothing for an alarm"),
        (-3.0, 2, "2 more false criticals"),
        (4.0, -1, "worth a median of 4.0 steps of lead, with 1 fewer"),
        (0.0, -1, "adds no lead"),
        (float("nan"), 0, "nothing can be said"),
    ],
)
def test_the_conclusion_follows_from_the_numbers(gain: float, more_false: int, words: str) -> None:
    assert words in quality.conclusion(gain, more_false)


def test_the_claim_holds_for_fresh_gradients_alone(world: list[Run]) -> None:
    rows = tables.claim_rows(world)
    own = {"condition": "C", "behavior": "A"}
    assert cell(rows, "correlation", **own) == "1.00 [1.00, 1.00]"
    assert cell(rows, "slope", **own) == "1.00 [1.00, 1.00]"
    old = [one for one in tables.staleness(world) if one.age > 0]
    assert {one.age for one in old} == set(AGES)
    assert all(abs(one.correlation) < 0.4 for one in old)
    assert all(one.fresh == pytest.approx(1, abs=1e-6) for one in old)
    stale = tables.staleness_rows(world)
    assert cell(stale, "oldest with ≥ 0.5", **own) == "0"


def test_predictions_of_the_wrong_size_and_sign_show(tmp_path: Path) -> None:
    run = make(tmp_path, "C", 0, {"A": falling(120)}, scale=-0.5)
    rows = tables.claim_rows([run])
    assert cell(rows, "slope", condition="C") == "−2.00 [−2.00, −2.00]"
    signs = cell(rows, "sign right where the change exceeds 0.05", condition="C")
    assert signs.startswith("0 of ")
    large = cell(tables.residual_rows([run]), "median residual ÷ change", **{
        "realized change": "0.05 to 0.2"
    })  # fmt: skip
    assert large == "1.50"


def test_overlap_at_both_ends_beside_chance(world: list[Run]) -> None:
    rows = tables.overlap_rows(world)
    assert cell(rows, "A and B at step 0", condition="C") == "0.500 [0.500, 0.500]"
    assert cell(rows, "at the end", condition="C") == "0.200 [0.200, 0.200]"
    assert cell(rows, "chance", condition="C").startswith("0.125")


def verdict(rows: list[dict[str, object]], start: str) -> dict[str, object]:
    return next(row for row in rows if str(row["criterion"]).startswith(start))


def test_acceptance_says_which_seeds_failed(world: list[Run]) -> None:
    rows = tables.acceptance(frame_of(world))
    early = verdict(rows, "A's critical lead ≥ 1 under C in")
    assert not early["met"]
    assert "at least 1 in 1 of the 2 seeds that broke" in str(early["measured"])
    assert verdict(rows, "null")["met"]
    assert not verdict(rows, "B's")["met"], "criteria without runs do not pass"


def test_no_break_is_reported_and_does_not_pass(tmp_path: Path) -> None:
    alerts = {"A": (100, Level.CRITICAL)}
    runs = [
        make(tmp_path, "C", 0, {"A": falling(120)}, alerts),
        make(tmp_path, "C", 1, {"A": calm()}),
    ]
    early = verdict(tables.acceptance(frame_of(runs)), "A's critical lead ≥ 1 under C in")
    assert "no break in 1 of 2 seeds" in str(early["measured"])
    assert not early["met"]
    assert verdict(tables.acceptance(frame_of(runs[:1])), "A's")["met"]


def test_a_warning_on_null_and_a_false_critical_fail(tmp_path: Path) -> None:
    null = make(tmp_path, "null", 0, {"A": calm()}, {"A": (9, Level.WARNING)})
    disjoint = make(tmp_path, "C_disjoint", 0, {"B": calm()}, {"B": (9, Level.CRITICAL)})
    rows = tables.acceptance(frame_of([null, disjoint]))
    assert verdict(rows, "null")["measured"] == "alerts in 1 of 1 runs"
    assert not verdict(rows, "null")["met"]
    assert not verdict(rows, "C_disjoint")["met"]


def test_events_carry_alert_break_and_lead(world: list[Run]) -> None:
    rows = figures.event_rows(world[1:], "A")
    assert [r["step"] for r in rows if r["kind"] == "alert"] == [100, 205]
    assert [r["step"] for r in rows if r["kind"] == "break"] == [120, 200]
    assert [r["text"] for r in rows if "text" in r] == ["20", "−5"]
    assert [r["kind"] for r in figures.event_rows(world[1:2], "B")] == ["alert"]


def test_a_band_holds_every_seed() -> None:
    rows = curves.band([[(0, 0.0), (10, 10.0)], [(0, 4.0), (5, 4.0), (10, 4.0)]])
    assert [row["step"] for row in rows] == list(range(11))
    assert (rows[10]["low"], rows[10]["middle"], rows[10]["high"]) == (4, 7, 10)
    assert (rows[2]["low"], rows[2]["high"]) == (2, 4)


@pytest.mark.parametrize(
    "figure",
    [
        figures.behavior_figure,
        signals_figure,
        figures.claim_figure,
        figures.staleness_figure,
    ],
)
def test_figures_name_conditions_and_draw(
    figure: Callable[[list[Run]], object], world: list[Run], tmp_path: Path
) -> None:
    chart = figure(world)
    text = json.dumps(chart.to_dict())  # type: ignore[attr-defined]
    assert "null" in text
    file = save_figure(chart, tmp_path / "figure.png")
    size = struct.unpack(">II", file.read_bytes()[16:24])
    assert size[0] > 400 and size[1] > 200
