"""The law of the pace: what is judged, how it is chosen, and that the library has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.harness.preregistration import Preregistration
from experiments.onset import pace
from experiments.onset import preflight_check as check
from experiments.onset.trace import BehaviorTrace, Trace
from riprap.prediction import _break_forecast as law


def make_trace(
    name: str, fall: float, lasting: float = 400, switch: int = 200, steps: int = 200
) -> Trace:
    """A run whose margins fall from 1; the pace dies off within `lasting` steps."""
    time = np.arange(steps + 1)
    gone = fall * lasting * (1 - np.exp(-time / lasting))
    margins = 1 - gone[:, None] * np.linspace(0.9, 1.1, 20)
    own = BehaviorTrace(margins, np.zeros(20), np.zeros(steps), np.ones(1))
    rates = np.ones(steps)
    about = {"world": "made", "change": switch, "steps": steps}
    return Trace("unlike", name, "exploratory", about, time, rates, rates, time[:1], {"kept": own})


def terms() -> Preregistration:
    return Preregistration.named("preflight")


def test_the_library_has_the_law_that_was_frozen() -> None:
    found = pace.to_predict(pace.cases([make_trace(str(f), f) for f in (0.001, 0.004, 0.01, 0.03)]))
    assert terms().study is not None
    terms().verify()
    chosen = terms().study["choice"]["chosen"]
    assert (chosen["own"], chosen["pace"], chosen["doubt"]) == (law.OWN, law.PACE, law.DOUBT)
    times = pace.line_times(found, chosen["own"])
    others = {key: chosen[key] for key in ("exponent", "pace", "doubt")}
    expected = pace.break_probability(found, times, **others)
    own = [case.course().forecast()[1] for case in found]
    assert own == pytest.approx(expected)
    assert 0 < own[0] < own[1] < own[2] < own[3] < 1


def test_runs_that_no_forecast_can_know_are_left_out() -> None:
    traces = [
        make_trace("slow", 0.004),
        make_trace("fast", 0.2),
        make_trace("late", 0.004, 400, 90),
    ]
    found = pace.cases(traces)
    assert [(case.seen, case.switched) for case in found] == [
        (False, False),
        (True, False),
        (False, True),
    ]
    assert [case.trace.name for case in pace.to_predict(found)] == ["slow"]
    assert found[0].sums.tolist() == [7, 11, 15]  # the first steps with sums that large


def test_a_falling_pace_reaches_less_far() -> None:
    left, done = np.array([100.0]), np.array([10.0])
    reach = [pace.effective(left, done, e).item() for e in (0.0, 1e-6, 0.5, 0.999999, 1.0)]
    assert reach == sorted(reach)
    assert reach[0] == pytest.approx(reach[1], rel=1e-4)
    assert reach[4] == 100.0 and reach[3] == pytest.approx(100, rel=1e-4)


def test_the_choice_takes_a_slower_pace_where_paces_die_off() -> None:
    """Breaks along the first line would come in all of these runs; half of them last."""
    falls = np.linspace(0.006, 0.02, 12)
    lasting = [make_trace(f"lasting {f:.3f}", f) for f in falls]
    dying = [make_trace(f"dying {f:.3f}", f, 25) for f in falls]
    grid = {"own": [0.25], "exponent": [1.0], "pace": [0.2, 1.0], "doubt": [0.5, 1.5]}
    slow = pace.choose(pace.to_predict(pace.cases(dying)), grid, 0.0)
    fast = pace.choose(pace.to_predict(pace.cases(lasting)), grid, 0.0)
    assert (slow["pace"], fast["pace"]) == (0.2, 1.0)
    assert slow["settings"] == 4


def test_the_tables_count_breaks_and_show_every_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "REPLICATES", 50)
    monkeypatch.setattr(check, "REPLICATES", 50)
    for at, fall in enumerate((0.0, 0.0005, 0.02, 0.03, 0.2)):
        make_trace(f"run {at}", fall).save(tmp_path)
    make_trace("late", 0.02, 400, 90).save(tmp_path)
    text = check.pace_section(tmp_path / "unlike", "exploratory", terms())
    assert "6 runs, 6 behavior-runs. 1 broke within the first steps" in text
    assert "To predict: 4." in text
    assert "| law | 1.000 [0.342, 1.000] of 2 | 0.000 [0.000, 0.658] of 2 |" in text
    for rule in ("line as before", "base rate", "lost mean margin", "never breaks"):
        assert f"| {rule} |" in text
    assert "The data change later in the run" in text and "(1 behavior-runs)" in text
    assert "No runs" in check.pace_section(tmp_path / "unlike", "confirmatory", terms())
