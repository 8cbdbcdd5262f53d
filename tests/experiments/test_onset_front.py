"""The front of alerts: curves against a count by hand, and policies that lie on them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from experiments.onset.front import SWEPT, Front, curve, largest, write_front
from experiments.onset.nulls import null_traces
from experiments.onset.replay import Outcome
from experiments.onset.tables import Judged
from experiments.onset.trace import BehaviorTrace, Trace
from riprap import AlertPolicy
from riprap.types import Level


def made(broke: int | None, values: list[float]) -> Judged:
    """A behavior-run evaluated at every fifth step."""
    outcome = Outcome(None, "b", broke, {}, len(values), 100)  # type: ignore[arg-type]
    return Judged(outcome, [5 * at for at in range(len(values))], [], {"rule": values})


def falling(slope: float) -> Trace:
    """A run whose margins fall along lines of their own."""
    start, steps = np.linspace(1.0, 3.0, 20), 200
    margins = start - slope * np.arange(steps + 1)[:, None] * np.linspace(0.5, 1.5, 20)
    ones, time = np.ones(steps), np.arange(steps + 1)
    own = BehaviorTrace(margins, np.arange(20), ones, np.ones(1))
    return Trace("made", f"{slope}", "exploratory", {}, time, ones, ones, time[:1], {"b": own})


def test_a_value_that_comes_too_late_does_not_count() -> None:
    own = made(12, [0.1, 0.4, 0.9])
    assert largest(own, "rule", 1) == 0.9 and largest(own, "rule", 5) == 0.4
    assert largest(made(None, [0.1, 0.4, 0.9]), "rule", 5) == 0.9


def test_a_curve_counts_alarms_and_announced_breaks() -> None:
    judged = [made(12, [0, 0.4, 0.9]), made(12, [0, 0.2, 0.3]), made(None, [0, 0.3, 0.1])]
    false, announced = curve(judged, "rule", 5)
    assert list(zip(false, announced, strict=True)) == [(0, 0), (0, 0.5), (1, 0.5), (1, 1)]


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    return [*map(falling, (0.0, 0.001, 0.003, 0.01, 0.05)), *islice(null_traces([3]), 6)]


def test_the_default_lies_on_its_own_curve(traces: list[Trace]) -> None:
    front = Front(traces, [AlertPolicy.default()])
    for point in front.points:
        false, announced = front.curves[point["level"], SWEPT]
        on = np.isclose(false, point["false"]) & np.isclose(announced, point["announced"])
        assert on.any(), point
    assert {point["level"] for point in front.points} == {Level.WARNING, Level.CRITICAL}


def test_the_front_is_written(traces: list[Trace], tmp_path: Path) -> None:
    policies = [AlertPolicy.default(), AlertPolicy.named("quiet")]
    text = write_front("made", traces, policies, tmp_path, "command")
    assert (tmp_path / "front-made.png").stat().st_size > 10_000
    drawn = (tmp_path / "front-made.svg").read_text()
    assert "quiet" in drawn and "lost threshold margin" in drawn
    assert (tmp_path / "front-made.md").read_text() == text
    assert "| at 10% false |" in text
