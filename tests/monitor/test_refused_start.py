"""A start that was refused leaves nothing that blocks, or colors, the next one."""

from __future__ import annotations

import copy
import gc
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from loops import task, train
from riprap import Behavior, Monitor, guards
from riprap.errors import BehaviorError, ConfigError, RecordError, RiprapError
from riprap.guards import Guard
from riprap.record import FILE_NAME, Reader
from riprap.signals import Signal


class Failing(Signal):
    """A signal that cannot start."""

    name = "failing"

    def start(self, view: Any) -> None:
        raise ConfigError("this signal cannot start")


class Interrupted(Guard):
    """A guard at whose start the user stops the cell of a notebook."""

    name = "interrupted"

    def start(self, view: Any) -> None:
        raise KeyboardInterrupt


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=1e-2)


def watch(monitor: Monitor, model: nn.Module, steps: int = 3) -> None:
    optimizer = sgd(model)
    with monitor.watch(model, optimizer):
        train(model, optimizer, task(steps))


def steps_of(folder: Path) -> list[int]:
    with Reader(folder) as reader:
        return [own.step for own in reader.readings() if own.signal == "margin"]


def never(memory: Behavior) -> Behavior:
    """Return a behavior without any probe that passes."""
    margins = lambda model, probes: -memory.margins(model, probes).abs() - 1  # noqa: E731
    return Behavior("never", memory.probes, margins)


@pytest.mark.parametrize("case", ["guard", "interrupted", "behaviors", "optimizer", "signal"])
def test_a_new_monitor_may_take_the_folder_of_a_refused_start(
    case: str, learned: nn.Module, memory: Behavior, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "behaviors": {"behaviors": [memory, never(memory)], "keep_passing": True},
        "signal": {"signals": [Failing()]},
    }.get(case, {})
    refused = Monitor(**{"behaviors": [memory], "run_dir": tmp_path} | options)
    refused.log_event("note", text="what is pending is written with the start")
    guard = {"guard": guards.AGEM(["nobody"]), "interrupted": Interrupted()}.get(case)
    optimizer = None if case == "optimizer" else sgd(learned)
    with pytest.raises((RiprapError, KeyboardInterrupt)) as error:  # its traceback is kept
        refused.begin(learned, optimizer, guard)
    assert not isinstance(error.value, RecordError)
    watch(Monitor([memory], run_dir=tmp_path, probe_every=1), learned)
    assert steps_of(tmp_path) == [0, 1, 2, 3]


def test_a_later_watch_that_was_refused_leaves_the_run_to_be_resumed(
    learned: nn.Module, memory: Behavior, tmp_path: Path
) -> None:
    first = Monitor([memory], run_dir=tmp_path, probe_every=1)
    watch(first, learned)
    with pytest.raises(ConfigError, match="not monitored"):
        first.begin(learned, sgd(learned), guards.AGEM(["nobody"]))
    watch(Monitor([memory], run_dir=tmp_path, resume=True), learned)
    assert max(steps_of(tmp_path)) == 3
    assert first.step == 3


def test_a_monitor_whose_record_was_replaced_writes_to_no_lost_file(
    learned: nn.Module, memory: Behavior, tmp_path: Path
) -> None:
    """And it takes nothing from the record of the monitor that came after it."""
    refused = Monitor([memory], run_dir=tmp_path)
    with pytest.raises(ConfigError, match="not monitored"):
        refused.begin(learned, sgd(learned), guards.AGEM(["nobody"]))
    second = Monitor([memory], run_dir=tmp_path, probe_every=1)
    with pytest.raises(RecordError, match=r"replaced by another monitor.*create a new monitor"):
        refused.begin(learned, sgd(learned))
    optimizer = sgd(learned)
    with second.watch(learned, optimizer):
        train(learned, optimizer, task(1))
        del refused
        gc.collect()
        train(learned, optimizer, task(2))
    second.record.close()
    assert steps_of(tmp_path) == [0, 1, 2, 3]


def test_what_was_wrong_at_a_refused_start_is_not_said_of_the_next(
    learned: nn.Module, memory: Behavior
) -> None:
    stale = sgd(learned)
    learned[2] = copy.deepcopy(learned[2])
    monitor = Monitor([memory])
    with pytest.warns(UserWarning, match="in no optimizer"), pytest.raises(ConfigError):
        monitor.begin(learned, stale, guards.AGEM(["nobody"]))
    watch(monitor, learned)
    assert "in no optimizer" not in monitor.summary()


def test_a_refused_start_whose_record_is_locked_says_why_it_was_refused(
    learned: nn.Module, memory: Behavior, tmp_path: Path
) -> None:
    ill = Behavior("ill", memory.probes, lambda model, probes: torch.full((24,), float("nan")))
    refused = Monitor([ill], run_dir=tmp_path)
    refused.log_event("note", text="pending")
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BehaviorError, match="must be finite"):
        refused.begin(learned, sgd(learned))
    other.close()
    watch(Monitor([memory], run_dir=tmp_path, probe_every=1), learned)
    assert steps_of(tmp_path) == [0, 1, 2, 3]
