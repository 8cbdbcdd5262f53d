"""Replays of recorded runs say what the real monitor says, and the tables count it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments.onset.__main__ import main
from experiments.onset.intervals import held, interval_rows_by
from experiments.onset.monitored import watch
from experiments.onset.nulls import null_traces
from experiments.onset.replay import Outcome, judge_by, replay
from experiments.onset.tables import Judged, first_step, judge, leads, rival_bound, share, table
from experiments.onset.trace import BehaviorTrace, Trace
from riprap import AlertPolicy
from riprap.types import Forecast, Level


def falling(slope: float, n_steps: int = 200, name: str = "a") -> Trace:
    """A run whose margins fall along lines of their own, with the interference that says so."""
    start = np.linspace(1.0, 3.0, 20)
    margins = start - slope * np.arange(n_steps + 1)[:, None] * np.linspace(0.5, 1.5, 20)
    changes = np.diff(margins.mean(1))
    steps, ones = np.arange(n_steps + 1), np.ones(n_steps)
    own = BehaviorTrace(margins, np.arange(20), changes, np.ones(1))
    about = {"seed": 0}
    return Trace("unlike", name, "exploratory", about, steps, ones, ones, np.array([0]), {"b": own})


@pytest.mark.parametrize("policy", ["default", "quiet", "early"])
def test_the_real_monitor_says_the_same(policy: str) -> None:
    own = AlertPolicy.named(policy)
    traces = [falling(0.0), falling(0.01), falling(0.05), *islice(null_traces([3]), 4)]
    for trace in traces:
        (replayed,), (watched,) = replay(trace, judge_by(own)), watch(trace, own, None)
        assert watched.first == replayed.first, trace.name
        assert (watched.broke, watched.evaluations) == (replayed.broke, replayed.evaluations)


def test_a_budget_costs_evaluations() -> None:
    whole, cheap = (watch(falling(0.001), AlertPolicy.default(), b)[0] for b in (None, 0.01))
    assert cheap.evaluations < whole.evaluations
    leads_by_price = []
    for price in (0.01, 0.9):
        (outcome,) = watch(falling(0.01), AlertPolicy.default(), 0.03, price)
        leads_by_price.append(outcome.lead(Level.WARNING))
    assert leads_by_price[0] is not None and leads_by_price[0] >= 5
    assert leads_by_price[1] is None or leads_by_price[1] <= leads_by_price[0]


def test_rows_count_what_was_said() -> None:
    slopes = (0.0, 0.0001, 0.01, 0.02, 0.05)
    judged = judge([falling(s, name=str(s)) for s in slopes], AlertPolicy.default())
    alarms, found = leads(judged, lambda own: own.outcome.first.get(Level.CRITICAL))
    breaks = [own.broke for own in judged if own.broke is not None]
    assert (len(alarms), sum(alarms), len(found)) == (2, 0, 3)
    assert all(lead >= 1 for lead in found)
    assert breaks == [own.outcome.broke for own in judged[2:]]
    shown = table("default", judged)
    assert shown[0]["said without a break"].startswith("0.000")
    assert shown[0]["\u2265 1 step before"].endswith("of 3")


def test_a_rival_has_as_many_false_alarms_as_allowed() -> None:
    slopes = (0.0, 0.001, 0.002, 0.003, 0.02, 0.05)
    judged = judge([falling(s, name=str(s)) for s in slopes], AlertPolicy.default())
    for allowed in (0, 1, 2):
        bound = rival_bound(judged, "lost mean margin", allowed)
        alarms, _ = leads(
            judged, lambda own, b=bound: first_step(own, own.rivals["lost mean margin"], b)
        )
        assert sum(alarms) == allowed


NEVER = float("inf")


def told(broke: int | None, schedule: str, *bounds: tuple[float, float]) -> Judged:
    """A behavior-run with forecasts at steps 0, 10, …, given by the bounds of their interval."""
    forecasts = [Forecast(low, low, high, 50, None) for low, high in bounds]
    trace = falling(0.0, name=f"{schedule}-{broke}")
    trace.about["schedule"] = schedule
    outcome = Outcome(trace, "b", broke, {}, len(forecasts), 200)
    return Judged(outcome, [10 * at for at in range(len(forecasts))], [*forecasts])


def test_an_interval_holds_a_break_or_the_want_of_one() -> None:
    # The break is 80, 70, 60, 50 and 40 steps away; forecasts look 50 ahead.
    own = told(80, "linear", (10, 20), (10, NEVER), (NEVER, NEVER), (NEVER, NEVER), (30, 40))
    assert held(own) == {
        "overall": [False, True, True, False, True],
        "came": [False, True],
        "forecast": [True],
    }
    never = held(told(None, "linear", (10, 20), (10, NEVER), (NEVER, NEVER)))
    assert never == {"came": [], "forecast": [], "overall": [False, True, True]}


def test_intervals_are_counted_by_schedule() -> None:
    judged = [
        told(25, "linear", (20, 30), (10, 20), (9, 9)),
        told(25, "cosine", (20, 30), (10, 20), (NEVER, NEVER)),
        told(None, "warmup_cosine", (1, 2)),
    ]
    rows = {row["setting"]: row for row in interval_rows_by(judged)}
    assert list(rows) == ["all", "schedule: linear", "schedule: warm-up, cosine"]
    linear, cosine = rows["schedule: linear"], rows["schedule: warm-up, cosine"]
    assert (
        linear["right, overall"] == share(2 / 3, 1, 2) and linear["runs, behavior-runs"] == "1, 1"
    )
    assert cosine["break in it, where one was forecast"].startswith("1.00")
    assert cosine["break in it, where one came"].startswith("0.67")
    assert cosine["the aim is"] == "missed (too many), missed (too few), missed (too few)"


def test_the_interval_of_a_share_is_that_of_wilson() -> None:
    for hits, total in ((0, 14), (8, 14), (31, 31)):
        low, high = stats.binomtest(hits, total).proportion_ci(method="wilson")
        assert share(hits, total) == f"{hits / total:.3f} [{low:.3f}, {high:.3f}] of {total}"


def test_the_tables_of_intervals_can_be_had_alone(tmp_path: Path) -> None:
    for slope in (0.0, 0.02):
        trace = falling(slope, name=str(slope))
        trace.about["schedule"] = "constant" if slope else "linear"
        trace.save(tmp_path)
    page = tmp_path / "page.md"
    folder = str(tmp_path / "unlike")
    main(["exploratory", "--runs", folder, "--intervals", "--page", str(page)])
    text = page.read_text()
    assert "| schedule: constant | 1, 1 | 1.00 [0.21, 1.00] of 1 |" in text
    assert "| schedule: linear | 1, 1 | – | – | 1.00 [0.21, 1.00] of 1 |" in text
    assert "said without a break" not in text and "--intervals" in text
