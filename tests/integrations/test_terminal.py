"""The live table as a tracker: any loop, few plain lines elsewhere, the summary once, no harm."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from tqdm import tqdm

from integrations.test_trackers import training, watching
from loops import flat, task, train
from riprap import AlertPolicy, Behavior, Monitor
from riprap.integrations.hf import MonitorCallback
from riprap.integrations.terminal import Terminal
from riprap.integrations.terminal._table import MAX_REST, LiveTable

pytestmark = pytest.mark.filterwarnings("ignore:riprap. behavior")


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def written(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def watch(model: nn.Module, monitor: Monitor, steps: int | None = 30, count: int = 30) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.watch(model, optimizer, steps=steps):
        for batch in task(count):
            train(model, optimizer, [batch])
            monitor.log_training(loss=0.5)


def test_a_terminal_shows_table_loss_and_summary(learned: nn.Module, memory: Behavior) -> None:
    out = console(terminal=True)
    monitor = Monitor([memory], trackers=[Terminal(out)])
    watch(learned, monitor)
    text = written(out)
    last = text.rsplit("forecast break", 1)[1]
    assert "30/30" in last and "loss 0.500" in last
    score = monitor.metrics()["riprap/memory/score"]
    assert f"{score:.2f}" in last
    assert text.count("30 steps watched") == 1
    assert "has not ended" not in text and monitor.summary().splitlines()[0][:40] in text


def test_what_a_training_does_between_two_steps_is_shown_until_the_next(
    learned: nn.Module, memory: Behavior
) -> None:
    out = console(terminal=True)
    table = Terminal(out)
    monitor = Monitor([memory], trackers=[table])
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    with monitor.watch(learned, optimizer, steps=3):
        table.note("cycle 1: 5 of about 9 rollouts")
        assert "cycle 1: 5 of about 9 rollouts" in written(out)
        for batch in task(3):
            train(learned, optimizer, [batch])
        monitor.log_training(loss=0.5)
    last = written(out).rsplit("forecast break", 1)[1]
    assert "loss 0.500" in last and "cycle" not in last


@pytest.mark.parametrize("steps", [300, None])
def test_elsewhere_a_run_is_a_few_lines_and_the_news(
    steps: int | None, learned: nn.Module, memory: Behavior
) -> None:
    out = console(terminal=False)
    monitor = Monitor([memory], trackers=[Terminal(out)])
    watch(learned, monitor, steps, 300)
    lines = written(out).splitlines()
    told = [line for line in lines if line.startswith("step ")]
    assert len(told) <= 60
    assert told[0].startswith("step 0/300" if steps else "step 0:")
    assert told[-1].startswith("step 300")
    broke = monitor.broken()["memory"]
    assert broke is not None
    assert any(f"broke at step {broke}" in line for line in told)
    assert "\x1b" not in written(out)


def test_beside_bars_of_tqdm_it_prints_lines(
    learned: nn.Module, memory: Behavior, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    with tqdm(total=3, file=io.StringIO()):
        watch(learned, Monitor([memory], trackers=[Terminal()]))
    assert "step 30/30, loss 0.500: memory score" in screen.getvalue()


def test_training_is_the_same_and_a_broken_terminal_ends_nothing(memory: Behavior) -> None:
    class Torn(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError("the terminal is gone")

    ends = []
    for out in (None, console(True), Console(file=Torn(), force_terminal=True)):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        monitor = Monitor([memory], trackers=[] if out is None else [Terminal(out)])
        watch(model, monitor)
        ends.append(flat(model).tobytes())
        assert monitor.step == 30
    assert len(set(ends)) == 1
    failed = monitor.history().query("state == 'ERROR'")
    assert failed.signal.tolist() == ["tracker Terminal"]
    assert monitor.trackers == []


def test_with_a_trainer_the_summary_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "riprap")
    out = console(terminal=False)
    monitor = watching(run_dir=tmp_path / "run", trackers=[Terminal(out)])
    training(tmp_path, [MonitorCallback(monitor)]).train()
    assert written(out).count("11 steps watched") == 1
    assert "11 steps watched" not in caplog.text
    assert "Report:" in caplog.text
    assert "step 11/11, loss" in written(out)


def test_a_copy_draws_on_standard_error(learned: nn.Module, memory: Behavior) -> None:
    for copied in (copy.deepcopy, lambda own: pickle.loads(pickle.dumps(own))):
        own: Any = copied(Terminal(console(True)))
        own.step(1)
        own.flush()
        own.end()


def test_two_watches_have_a_table_each(learned: nn.Module, memory: Behavior) -> None:
    out = console(terminal=False)
    monitor = Monitor([memory], AlertPolicy.default(), trackers=[Terminal(out)])
    watch(learned, monitor, 5, 5)
    watch(learned, monitor, 5, 5)
    assert "step 5/5" in written(out) and "step 10/10" in written(out)
    assert written(out).count("steps watched") == 2


def test_one_slow_drawing_stops_the_table_for_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now, out = [100.0], console(terminal=True)
    monkeypatch.setattr("riprap.integrations.terminal._table.time.monotonic", lambda: now[0])
    with LiveTable(["memory"], 100, out) as table:
        render = table._render
        monkeypatch.setattr(table, "_render", lambda: (now.__setitem__(0, now[0] + 2), render())[1])
        table.update(1, [])  # takes two seconds
        now[0] += MAX_REST - 1
        table.update(2, [])
        before = written(out)
        assert "2/100" not in before
        now[0] += 2
        table.update(3, [])
        assert "3/100" in written(out)
