"""What cannot be watched is refused before training starts, in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from loops import task, train
from riprap import Behavior, Monitor, Protocol
from riprap.evidence import BehaviorError, ConfigError, ProtocolError, RecordError


def test_no_behaviours(protocol: Protocol) -> None:
    with pytest.raises(ConfigError, match="nothing to watch: give the monitor at least one"):
        Monitor([], protocol=protocol)


def test_two_of_one_name(memory: Behavior, protocol: Protocol) -> None:
    with pytest.raises(ConfigError, match="two behaviours are called 'memory'"):
        Monitor([memory, memory], protocol=protocol)


@pytest.mark.parametrize("every", [0, -3])
def test_no_such_cadence(memory: Behavior, protocol: Protocol, every: int) -> None:
    with pytest.raises(ConfigError, match=f"every={every}: "):
        Monitor([memory], protocol=protocol, every=every)


def test_a_protocol_that_was_changed(memory: Behavior, protocol: Protocol) -> None:
    changed = protocol.freeze().model_copy(update={"name": "better"})
    with pytest.raises(ProtocolError, match="was changed after it was frozen"):
        Monitor([memory], protocol=changed)


def test_a_frozen_model(learned: nn.Module, memory: Behavior, protocol: Protocol) -> None:
    learned.requires_grad_(False)
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    monitor = Monitor([memory], protocol=protocol)
    with (
        pytest.raises(ConfigError, match=r"nothing to watch: .*is it frozen"),
        monitor.watch(learned, optimizer),
    ):
        pytest.fail("it was watched")


def test_the_optimizer_of_another_model(
    learned: nn.Module, small_net: nn.Module, memory: Behavior, protocol: Protocol
) -> None:
    optimizer = torch.optim.SGD(small_net.parameters(), lr=0.1)
    monitor = Monitor([memory], protocol=protocol)
    with (
        pytest.raises(ConfigError, match=r"nothing to watch: .*made for another one"),
        monitor.watch(learned, optimizer),
    ):
        pytest.fail("it was watched")


@pytest.mark.parametrize("thing", [None, "adam", torch.optim.lr_scheduler.StepLR])
def test_what_is_no_optimizer(
    learned: nn.Module, memory: Behavior, protocol: Protocol, thing: Any
) -> None:
    monitor = Monitor([memory], protocol=protocol)
    with (
        pytest.raises(ConfigError, match=r"cannot watch a \w+: give the torch\.optim\.Optimizer"),
        monitor.watch(learned, thing),
    ):
        pytest.fail("it was watched")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_margin_that_is_not_finite(
    learned: nn.Module, memory: Behavior, protocol: Protocol, value: float
) -> None:
    def margins(model: nn.Module, probes: Any) -> torch.Tensor:
        return memory.margins(model, probes).index_fill(0, torch.tensor(5), value)

    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    monitor = Monitor([Behavior("sick", memory.probes, margins)], protocol=protocol)
    with (
        pytest.raises(BehaviorError, match=f"'sick': the margin of probe 5 is {value} before"),
        monitor.watch(learned, optimizer),
    ):
        pytest.fail("it was watched")
    assert not optimizer._optimizer_step_pre_hooks


def test_a_margin_function_that_fails_at_once(
    learned: nn.Module, memory: Behavior, protocol: Protocol
) -> None:
    def margins(model: nn.Module, probes: Any) -> torch.Tensor:
        return model(probes["text"])

    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    monitor = Monitor([Behavior("odd", memory.probes, margins)], protocol=protocol)
    with pytest.raises(TypeError), monitor.watch(learned, optimizer):
        pytest.fail("it was watched")


def test_a_layer_that_is_not_there(
    learned: nn.Module, memory: Behavior, protocol: Protocol
) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    monitor = Monitor([memory], protocol=protocol, layer="blocks.4")
    with (
        pytest.raises(BehaviorError, match=r"layer 'blocks\.4' names 0 modules"),
        monitor.watch(learned, optimizer),
    ):
        pytest.fail("it was watched")


def test_a_monitor_that_is_in_use(learned: nn.Module, memory: Behavior, protocol: Protocol) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    monitor = Monitor([memory], protocol=protocol)
    with monitor.watch(learned, optimizer):
        with (
            pytest.raises(ConfigError, match="watching already"),
            monitor.watch(learned, optimizer),
        ):
            pytest.fail("it was watched twice")
        train(learned, optimizer, task(2))
    assert monitor.step == 2


def test_a_run_that_is_there_already(
    learned: nn.Module, memory: Behavior, protocol: Protocol, tmp_path: Path
) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    first = Monitor([memory], protocol=protocol, run=tmp_path / "run")
    with first.watch(learned, optimizer):
        train(learned, optimizer, task(2))
    with pytest.raises(RecordError, match=r"already holds a record.*name another run"):
        Monitor([memory], protocol=protocol, run=tmp_path / "run")
    assert len(first.history()) > 0


def test_after_a_refusal_the_monitor_can_still_watch(
    learned: nn.Module, memory: Behavior, protocol: Protocol
) -> None:
    monitor = Monitor([memory], protocol=protocol)
    with pytest.raises(ConfigError), monitor.watch(learned, None):
        pass
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    with monitor.watch(learned, optimizer):
        train(learned, optimizer, task(2))
    assert monitor.step == 2
