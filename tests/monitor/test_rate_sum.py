"""The sum of the learning rates is a clock: recorded, kept over a resume, missing where unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from loops import task
from riprap import Behavior, Monitor
from riprap.detectors import RATE_SUM, history_from_record
from riprap.record import Reader
from riprap.types import ReadingStatus

STEPS = 12


def train(model: nn.Module, monitor: Monitor, steps: range, state: Any = None) -> Any:
    """Train with two parameter groups under warm-up; return the states after the last step."""
    first, second = list(model.parameters())[:2], list(model.parameters())[2:]
    groups = [{"params": first, "lr": 1e-3}, {"params": second, "lr": 4e-3}]
    optimizer = torch.optim.SGD(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 8, 1))
    if state is not None:
        monitor.load_state_dict(state[0])
        schedule.load_state_dict(state[1])
        for group, rate in zip(optimizer.param_groups, state[2], strict=True):
            group["lr"] = rate
    batches = list(task(STEPS))
    with monitor.watch(model, optimizer):
        for step in steps:
            inputs, labels = batches[step]
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            schedule.step()
        rates = [group["lr"] for group in optimizer.param_groups]
        return monitor.state_dict(), schedule.state_dict(), rates


def expected(step: int) -> float:
    return sum(4e-3 * min(taken / 8, 1) for taken in range(step))


def test_it_is_the_sum_of_the_largest_rates(
    learned: nn.Module, memory: Behavior, tmp_path: Path
) -> None:
    monitor = Monitor([memory], run_dir=tmp_path / "run", probe_every=3)
    train(learned, monitor, range(STEPS))
    history = monitor.behavior_histories["memory"]
    np.testing.assert_allclose(history.rate_sums, [expected(step) for step in history.steps])
    with Reader(tmp_path / "run") as reader:
        again = history_from_record("memory", 0.9, reader.margins("memory"), reader.readings())
    assert again.rate_sums == history.rate_sums


def test_a_resumed_run_goes_on_with_it(learned: nn.Module, memory: Behavior) -> None:
    state = train(learned, Monitor([memory], probe_every=3), range(7))
    monitor = Monitor([memory], probe_every=3)
    train(learned, monitor, range(7, STEPS), state)
    history = monitor.behavior_histories["memory"]
    np.testing.assert_allclose(history.rate_sums, [expected(step) for step in history.steps])


def test_a_history_cut_back_keeps_its_own(learned: nn.Module, memory: Behavior) -> None:
    monitor = Monitor([memory], probe_every=3)
    train(learned, monitor, range(STEPS))
    earlier = monitor.behavior_histories["memory"].truncated(5)
    np.testing.assert_allclose(earlier.rate_sums, [expected(step) for step in earlier.steps])


class Rateless(torch.optim.Optimizer):
    """An optimizer that chooses its rate by itself, as Adafactor with a relative step does."""

    def __init__(self, parameters: Any, lr: Any) -> None:
        super().__init__(parameters, {"lr": None, "own": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter -= group["own"] * parameter.grad


@pytest.mark.parametrize("kind", [Rateless, torch.optim.SGD])
def test_a_missing_rate_is_no_number(
    kind: Any, learned: nn.Module, memory: Behavior, tmp_path: Path
) -> None:
    monitor = Monitor([memory], run_dir=tmp_path / "run", probe_every=3)
    optimizer = kind(learned.parameters(), lr=torch.tensor(1e-3))
    with monitor.watch(learned, optimizer):
        for inputs, labels in task(4):
            optimizer.zero_grad()
            functional.cross_entropy(learned(inputs), labels).backward()
            optimizer.step()
    known = kind is not Rateless
    sums = np.array(monitor.behavior_histories["memory"].rate_sums)
    assert np.isnan(sums[1:]).all() != known
    assert not known or np.allclose(sums, [1e-3 * step for step in range(5)])
    with Reader(tmp_path / "run") as reader:
        own = [reading for reading in reader.readings() if reading.signal == RATE_SUM]
    wanted = ReadingStatus.MEASURED if known else ReadingStatus.NOT_RUN
    assert own[-1].state is wanted
