"""A level is withdrawn once it has been lower for some evaluations, and the record says when."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from riprap import AlertPolicy, Behavior, Monitor
from riprap.detectors import Threshold
from riprap.integrations.terminal import behavior_rows
from riprap.record import Reader, Writer
from riprap.report import write_report
from riprap.types import Alert, Level

LOW = Threshold(signal="score", side="below", value=0.95)


class Scripted(nn.Module):
    """A model whose margins follow a script: the share of passing probes at each step."""

    def __init__(self, shares: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.shares, self.step = shares, 0

    def margins(self, _probes: Any) -> torch.Tensor:
        share = self.shares[min(self.step, len(self.shares) - 1)]
        if math.isnan(share):
            return torch.full((20,), math.nan) + 0 * self.weight
        passing = round(20 * share)
        signs = torch.where(torch.arange(20) < passing, 1.0, -1.0)
        return signs + 0 * self.weight


def run(shares: list[float], folder: Path, *detectors: Threshold) -> Monitor:
    model = Scripted(shares)
    behavior = Behavior("b", range(20), lambda own, probes: own.margins(probes), floor=0.5)
    policy = AlertPolicy(name="test", detectors=detectors or (LOW,))
    monitor = Monitor([behavior], policy=policy, run_dir=folder, probe_every=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with monitor.watch(model, optimizer):
        for _ in shares[1:]:
            model.weight.grad = torch.ones(1)
            model.step += 1
            optimizer.step()
    return monitor


def cleared(folder: Path) -> list[tuple[int, str, Any]]:
    with Reader(folder) as reader:
        events = [event for event in reader.events() if event["kind"] == "cleared"]
    return [(e["step"], e["facts"]["level"], e["facts"]["now"]) for e in events]


def test_it_is_said_once_and_withdrawn_once(tmp_path: Path) -> None:
    #          0  1  2    3  4    5  6  7    8
    shares = [1, 1, 0.9, 1, 0.9, 1, 1, 1, 0.9]
    monitor = run(shares, tmp_path)
    assert [alert.step for alert in monitor.alerts] == [2, 8]  # not at 4: it still stood
    assert cleared(tmp_path) == [(6, "warning", None)]
    with Reader(tmp_path) as reader:
        assert reader.withdrawals() == {0: 6}
    page = write_report(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('data-label="ended at">6</td>') == 1
    expected = (
        "Alerts that stand: warning at step 8. Withdrawn alerts: warning at step 2 (withdrawn"
    )
    assert f"{expected} at step 6)." in monitor.summary()
    assert "step 8, 1 alert" in str(monitor)


def test_the_event_names_the_alert_that_stands_no_longer(tmp_path: Path) -> None:
    """Two detectors of one kind: the deeper level is withdrawn, and the other stands."""
    deep = Threshold(signal="score", side="below", value=0.8, level=Level.CRITICAL)
    monitor = run([1, 0.7, 0.9, 0.9], tmp_path, LOW, deep)
    assert [alert.level for alert in monitor.alerts] == ["warning", "critical"]
    with Reader(tmp_path) as reader:
        assert reader.withdrawals() == monitor.withdrawals == {1: 3}
        (event,) = [event for event in reader.events() if event["kind"] == "cleared"]
    assert event["facts"]["alerts"] == [{"step": 1, "level": "critical"}]
    expected = (
        "Alerts that stand: warning at step 1. "
        "Withdrawn alerts: critical at step 1 (withdrawn at step 3)."
    )
    assert expected in monitor.summary()
    (row,) = behavior_rows(monitor)
    assert row.level == "warning"
    page = write_report(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "first warning at 1 · first critical at 1 (withdrawn)" in page


def test_alerts_on_what_could_not_be_measured_end_with_the_next_measurement(tmp_path: Path) -> None:
    monitor = run([1, math.nan, math.nan, 1, 1], tmp_path)
    assert [alert.detector for alert in monitor.alerts] == ["not_finite", "unmeasured"]
    assert monitor.withdrawals == {0: 3, 1: 3}
    assert "critical at step 1 (withdrawn at step 3)" in monitor.summary()
    assert "From step 2 to step 3: not measured at 2" in monitor.summary()
    page = write_report(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    (top,) = (line for line in page.splitlines() if line.startswith('<p class="empty"><span'))
    top = re.sub("<[^>]+>", "", top)  # explained words are marked
    assert "not measured at 2 probe evaluations" in top and "; withdrawn at step 3" in top
    again = run([1, math.nan, math.nan], tmp_path / "again")
    assert again.withdrawals == {} and "stand: critical at step 1." in again.summary()


def test_a_rollback_withdraws_what_stands(tmp_path: Path) -> None:
    monitor = run([1, 0.9, 0.9], tmp_path)
    tracker = monitor._run.tracker
    tracker.rewind(0, 2)
    ((step, facts),) = tracker.take_cleared()
    assert (step, facts["now"], facts["alerts"]) == (2, None, [{"step": 1, "level": "warning"}])
    assert monitor.withdrawals == {0: 2}


def test_what_was_withdrawn_in_steps_that_were_taken_again_does_not_count(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.add_alert(Alert(5, "b", Level.WARNING, "d", "low"))
    position = writer.position()
    facts = {"behavior": "b", "detector": "d", "alerts": [{"step": 5, "level": "warning"}]}
    writer.add_event(12, "cleared", **facts)
    assert Reader(writer).withdrawals() == {0: 12}
    writer.resume_from(10, position)
    assert Reader(writer).withdrawals() == {}
    writer.add_event(14, "cleared", **facts)
    assert Reader(writer).withdrawals() == {0: 14}
    writer.close()


def test_guards_see_the_level_of_now(tmp_path: Path) -> None:
    monitor = run([1, 0.9, 1], tmp_path)
    tracker = monitor._run.tracker
    assert tracker.active_levels == {} and cleared(tmp_path) == []


def test_it_survives_a_state(tmp_path: Path) -> None:
    tracker = run([1, 0.9, 1], tmp_path)._run.tracker
    state = tracker.state_dict() | {"check": {}}
    again = Monitor([Behavior("b", range(20), lambda m, p: m.margins(p), floor=0.5)],
                    policy=tracker.policy)._run.tracker  # fmt: skip
    again.load_state_dict(state)
    for own in (tracker, again):
        own.histories["b"].add_margins(3, np.ones(20))
        own.update(3)
        ((step, facts),) = own.take_cleared()
        assert (step, facts["level"], facts["alerts"]) == (
            3,
            "warning",
            [{"step": 1, "level": "warning"}],
        )
