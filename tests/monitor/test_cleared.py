"""A level is withdrawn once it has been lower for some evaluations, and the record says when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from riprap import AlertPolicy, Behavior, Monitor
from riprap.detectors import Threshold
from riprap.record import Reader
from riprap.report import write_report

LOW = Threshold(signal="score", side="below", value=0.95)


class Scripted(nn.Module):
    """A model whose margins follow a script: the share of passing probes at each step."""

    def __init__(self, shares: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.shares, self.step = shares, 0

    def margins(self, _probes: Any) -> torch.Tensor:
        passing = round(20 * self.shares[min(self.step, len(self.shares) - 1)])
        signs = torch.where(torch.arange(20) < passing, 1.0, -1.0)
        return signs + 0 * self.weight


def run(shares: list[float], folder: Path) -> Monitor:
    model = Scripted(shares)
    behavior = Behavior("b", range(20), lambda own, probes: own.margins(probes), floor=0.5)
    policy = AlertPolicy(name="test", detectors=[LOW])
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
    assert page.count("; withdrawn at step 6") == 1


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
        assert [facts["level"] for facts in own.take_cleared()] == ["warning"]
