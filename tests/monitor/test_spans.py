"""Interference that is read every few steps: each reading is the sum over the steps it covers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import resuming
from guards.cases import CASES, Run, lessons, monitor_of
from loops import task, train
from riprap import AlertPolicy, Behavior, Monitor, signals
from riprap.detectors import BehaviorHistory
from riprap.monitor import ProbeSchedule

READ_UPDATES = ("freeze", "si", "ema", "update_projection")
Readings = dict[int, float]


def interference(monitor: Monitor, name: str) -> Readings:
    history = monitor.history()
    own = history[(history.signal == "interference") & (history.behavior == name)]
    return dict(zip(own.step, own.value, strict=True))


def assert_sums(spans: Readings, each: Readings) -> None:
    assert list(each) == list(range(1, max(each) + 1))
    for begin, end in pairwise([0, *spans]):
        total = sum(each[step] for step in range(begin + 1, end + 1))
        assert spans[end] == pytest.approx(total, rel=1e-4, abs=1e-5)


def test_by_default_the_same_is_measured_for_less(learned: nn.Module, memory: Behavior) -> None:
    found = {}
    for read in (signals.default, signals.per_step):
        model = copy.deepcopy(learned)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        monitor = Monitor([memory], probe_every=20, signals=read())
        with monitor.watch(model, optimizer):
            train(model, optimizer, task(60))
        found[read] = monitor
    few, many = found.values()
    one, two = (own.behavior_histories["memory"] for own in (few, many))
    assert one.steps == two.steps
    assert len(one.steps) > 10
    assert all(map(np.array_equal, one.margins, two.margins))
    spans = interference(few, "memory")
    assert_sums(spans, interference(many, "memory"))
    assert set(one.steps[1:]) <= set(spans)
    gaps = [end - begin for begin, end in pairwise([0, *spans])]
    assert max(gaps) == ProbeSchedule.read_every
    assert len(spans) < 45
    other = set(few.history().signal)
    assert not other & {"cosine_margin", "norm_gradient", "norm_update", "depth"}
    assert {"cosine_margin", "norm_gradient", "norm_update", "depth"} <= set(many.history().signal)


@pytest.mark.parametrize("name", READ_UPDATES)
def test_a_guard_that_reads_updates_leaves_the_readings_whole(name: str) -> None:
    """It needs the weights before each step; the monitor's readings begin earlier."""
    runs = []
    for read in (signals.default, signals.per_step):
        run = Run(CASES[name](), rate=0.02)
        run.monitor = monitor_of(signals=read())
        runs.append(run.go(lessons(14)))
    for behavior in ("first", "second"):
        spans, each = (interference(run.monitor, behavior) for run in runs)
        assert_sums(spans, each)


@pytest.mark.parametrize("parts", [5, 7])
def test_a_run_interrupted_between_two_readings(tmp_path: Path, parts: int) -> None:
    class StoppedError(Exception):
        pass

    def stop(_: int) -> None:
        raise StoppedError

    def go(folder: str, **options: Any) -> None:
        own = {"probe_every": 20, "signals": signals.default(), "every": parts}
        resuming.train(tmp_path / folder, **(own | options))

    go("whole")
    for _ in range(29 // parts):
        with pytest.raises(StoppedError):
            go("broken", committed=stop)
    go("broken")
    assert resuming.content(tmp_path / "broken") == resuming.content(tmp_path / "whole")


def swapped_in(model: nn.Module, save: Callable[[], Any]) -> Any:
    """What is saved while averaged weights are in the model."""
    own = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    state = save()
    model.load_state_dict(own)
    return state


def test_saving_while_other_weights_are_loaded(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    start = copy.deepcopy(learned)
    whole, saved = (Monitor([memory], policy=policy) for _ in range(2))
    optimizer = torch.optim.SGD(start.parameters(), lr=1e-3)
    with whole.watch(start, optimizer):
        train(start, optimizer, task(20))
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-3)
    with saved.watch(learned, optimizer):
        train(learned, optimizer, task(20)[:9])
        assert 9 not in interference(saved, "memory")
        state = swapped_in(learned, saved.state_dict)
        later = copy.deepcopy(learned)
        train(learned, optimizer, task(20)[9:])
    assert saved.history().equals(whole.history())
    resumed = Monitor([memory], policy=policy)
    resumed.load_state_dict(state)
    optimizer = torch.optim.SGD(later.parameters(), lr=1e-3)
    with resumed.watch(later, optimizer):
        train(later, optimizer, task(20)[9:])
    assert resumed.behavior_histories["memory"].steps == whole.behavior_histories["memory"].steps
    first, *rest = resumed.history().query("signal == 'interference'").itertuples()
    assert first.state == "ERROR"  # nobody has read step 9
    assert {one.state for one in rest} == {"MEASURED"}


def test_the_latest_change_per_step() -> None:
    history = BehaviorHistory("b", 0.9)
    assert math.isnan(history.latest_interference_per_step())
    history.add_margins(0, np.ones(4))
    history.add_interference(4, -2.0)
    assert history.latest_interference_per_step() == -0.5
    history.add_interference(6, -2.0)
    assert history.latest_interference_per_step() == -1.0
    history.add_margins(9, np.ones(4))
    history.add_interference(10, -3.0)  # counted from the evaluation on
    assert history.latest_interference_per_step() == -3.0
    history.add_interference(12, None)
    assert math.isnan(history.latest_interference_per_step())
