"""DeepSpeed takes steps that no hook sees: only margins are read, and it is said. Stand-ins."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from riprap import Behavior, Monitor, evaluation, guards, signals
from riprap.errors import ConfigError


class ZeroOptimizer:
    """As in `deepspeed.runtime.zero.stage_1_and_2`: not a torch optimizer, but it contains one."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.optimizer = inner
        self.param_groups = inner.param_groups
        self.overflow = False

    def step(self) -> None:
        if not self.overflow:
            self.optimizer.step()


class Engine(nn.Module):
    """As in `deepspeed.runtime.engine`."""

    def __init__(self, module: nn.Module, optimizer: Any) -> None:
        super().__init__()
        self.module = module
        self.optimizer = optimizer

    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)


class CPUAdam(torch.optim.Adam):
    """As in `deepspeed.ops.adam`: it steps as any torch optimizer does."""


class Wrapper(torch.optim.Optimizer):
    """As in `accelerate.utils.deepspeed`: a torch optimizer whose step does nothing."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, {})

    def step(self, closure: Any = None) -> None:
        pass


ZeroOptimizer.__module__ = "deepspeed.runtime.zero.stage_1_and_2"
Engine.__module__ = "deepspeed.runtime.engine"
CPUAdam.__module__ = "deepspeed.ops.adam.cpu_adam"


def watched(learned: nn.Module, what: str) -> tuple[nn.Module, Any, ZeroOptimizer]:
    """What a user may give to `watch`, and the optimizer that steps."""
    zero = ZeroOptimizer(torch.optim.Adam(learned.parameters(), lr=1e-2))
    engine = Engine(learned, zero)
    model, optimizer = {
        "zero": (learned, zero),
        "engine": (learned, engine),
        "wrapper": (learned, Wrapper(zero)),
        "model": (engine, zero),
        "both": (engine, engine),
    }[what]
    return model, optimizer, zero


WAYS = ["zero", "engine", "wrapper", "model", "both"]


@pytest.mark.parametrize("what", WAYS)
def test_margins_are_read_after_each_step(learned: nn.Module, memory: Behavior, what: str) -> None:
    model, optimizer, zero = watched(learned, what)
    monitor = Monitor([memory], probe_every=1)
    with monitor.watch(model, optimizer):
        for _ in range(3):
            learned(torch.ones(2, 8)).sum().backward()
            zero.step()
        zero.overflow = True
        zero.step()
    history = monitor.history()
    assert monitor.behavior_histories["memory"].steps == [0, 1, 2, 3]
    np.testing.assert_array_equal(
        monitor.behavior_histories["memory"].margins[-1],
        evaluation.evaluate(memory, learned).margins,
    )
    skipped = history[(history.signal == "step") & (history.state == "NOT_RUN")]
    assert list(skipped.step) == [3] and "overflow" in skipped.detail.iloc[0]
    interference = history[history.signal == "interference"]
    assert set(interference.state) == {"NOT_RUN"}
    assert interference.detail.str.contains("forward passes").any()
    assert "forward passes" in monitor.summary()
    assert "step" not in vars(zero)


@pytest.mark.parametrize("what", WAYS)
def test_guards_are_refused(learned: nn.Module, memory: Behavior, what: str) -> None:
    model, optimizer, zero = watched(learned, what)
    monitor = Monitor([memory])
    with pytest.raises(ConfigError, match="guard agem: DeepSpeed steps inside its own engine"):
        monitor.begin(model, optimizer, guards.AGEM())
    assert "step" not in vars(zero)
    monitor.begin(model, optimizer)  # and the monitor can still be used
    monitor.end()


def test_a_watch_of_an_engine_is_resumed(learned: nn.Module, memory: Behavior) -> None:
    _, _, zero = watched(learned, "zero")
    first = Monitor([memory], probe_every=1)
    with first.watch(learned, zero):
        learned(torch.ones(2, 8)).sum().backward()
        zero.step()
        state = copy.deepcopy(first.state_dict())
    second = Monitor([memory], probe_every=1)
    second.load_state_dict(state)
    with second.watch(learned, zero):
        zero.step()
    assert second.behavior_histories["memory"].steps == [0, 1, 2]


def test_a_failing_probe_does_not_end_training(learned: nn.Module, memory: Behavior) -> None:
    _, _, zero = watched(learned, "zero")
    calls = []

    def margins(model: nn.Module, probes: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("broken")
        return memory.margins(model, probes)

    monitor = Monitor([Behavior("memory", memory.probes, margins)], probe_every=1)
    with pytest.warns(UserWarning, match="broken"), monitor.watch(learned, zero):
        learned(torch.ones(2, 8)).sum().backward()
        zero.step()
    history = monitor.history()
    assert monitor.step == 1 and "ERROR" in set(history.state)


def test_a_torch_optimizer_of_deepspeed_is_monitored(learned: nn.Module, memory: Behavior) -> None:
    optimizer = CPUAdam(learned.parameters(), lr=1e-2)
    monitor = Monitor([memory], signals=signals.per_step())
    with monitor.watch(learned, optimizer):
        learned(torch.ones(2, 8)).sum().backward()
        optimizer.step()
    assert monitor.step == 1
    assert "norm_update" in set(monitor.history().signal)
