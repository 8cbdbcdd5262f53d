"""Errors before training starts: each is one sentence that says what would be right."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from loops import task, train
from riprap import AlertPolicy, Behavior, Monitor
from riprap.errors import (
    BehaviorError,
    ConfigError,
    MissingExtraError,
    PolicyError,
    RecordError,
)


def test_no_behaviors(policy: AlertPolicy) -> None:
    with pytest.raises(ConfigError, match="nothing to monitor: give at least one behavior"):
        Monitor([], policy=policy)


def test_two_behaviors_of_one_name(memory: Behavior, policy: AlertPolicy) -> None:
    with pytest.raises(ConfigError, match="two behaviors are called 'memory'"):
        Monitor([memory, memory], policy=policy)


@pytest.mark.parametrize("every", [0, -3])
def test_an_interval_under_one_step(memory: Behavior, policy: AlertPolicy, every: int) -> None:
    with pytest.raises(
        ConfigError, match=f"probe_every={every}: give a whole number of at least 1"
    ):
        Monitor([memory], policy=policy, probe_every=every)


def test_a_policy_that_was_changed(memory: Behavior, policy: AlertPolicy) -> None:
    changed = policy.freeze().model_copy(update={"name": "better"})
    with pytest.raises(PolicyError, match="was changed after it was frozen"):
        Monitor([memory], policy=changed)


def test_a_frozen_model(learned: nn.Module, memory: Behavior, policy: AlertPolicy) -> None:
    learned.requires_grad_(False)
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    monitor = Monitor([memory], policy=policy)
    with (
        pytest.raises(ConfigError, match=r"nothing to watch: .*is the model frozen"),
        monitor.watch(learned, optimizer),
    ):
        pytest.fail("it was watched")


def test_the_optimizer_of_another_model(
    learned: nn.Module, small_net: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    optimizer = torch.optim.SGD(small_net.parameters(), lr=0.1)
    monitor = Monitor([memory], policy=policy)
    with (
        pytest.raises(ConfigError, match=r"nothing to watch: .*belong to another model"),
        monitor.watch(learned, optimizer),
    ):
        pytest.fail("it was watched")


@pytest.mark.parametrize("thing", [None, "adam", torch.optim.lr_scheduler.StepLR])
def test_what_is_no_optimizer(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, thing: Any
) -> None:
    monitor = Monitor([memory], policy=policy)
    with (
        pytest.raises(ConfigError, match=r"cannot watch a \w+: give the torch\.optim\.Optimizer"),
        monitor.watch(learned, thing),
    ):
        pytest.fail("it was watched")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_margin_that_is_not_finite(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, value: float
) -> None:
    def margins(model: nn.Module, probes: Any) -> torch.Tensor:
        return memory.margins(model, probes).index_fill(0, torch.tensor(5), value)

    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    monitor = Monitor([Behavior("sick", memory.probes, margins)], policy=policy)
    with (
        pytest.raises(BehaviorError, match=f"'sick': the margin of probe 5 is {value} before"),
        monitor.watch(learned, optimizer),
    ):
        pytest.fail("it was watched")
    assert not optimizer._optimizer_step_pre_hooks


def test_a_margin_function_that_fails_at_once(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    def margins(model: nn.Module, probes: Any) -> torch.Tensor:
        return model(probes["text"])

    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    monitor = Monitor([Behavior("odd", memory.probes, margins)], policy=policy)
    with pytest.raises(TypeError), monitor.watch(learned, optimizer):
        pytest.fail("it was watched")


def test_a_layer_that_is_not_there(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    monitor = Monitor([memory], policy=policy, feature_layer="blocks.4")
    with (
        pytest.raises(BehaviorError, match=r"layer 'blocks\.4' matches 0 modules"),
        monitor.watch(learned, optimizer),
    ):
        pytest.fail("it was watched")


def test_a_monitor_that_is_in_use(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    monitor = Monitor([memory], policy=policy)
    with monitor.watch(learned, optimizer):
        with (
            pytest.raises(ConfigError, match="already watching"),
            monitor.watch(learned, optimizer),
        ):
            pytest.fail("it was watched twice")
        train(learned, optimizer, task(2))
    assert monitor.step == 2


def test_a_run_that_is_there_already(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, tmp_path: Path
) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    first = Monitor([memory], policy=policy, run_dir=tmp_path / "run")
    with first.watch(learned, optimizer):
        train(learned, optimizer, task(2))
    with pytest.raises(RecordError, match=r"already holds a record.*give another run_dir"):
        Monitor([memory], policy=policy, run_dir=tmp_path / "run")
    assert len(first.history()) > 0


def test_after_a_refusal_the_monitor_can_still_watch(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    monitor = Monitor([memory], policy=policy)
    with pytest.raises(ConfigError), monitor.watch(learned, None):
        pass
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    with monitor.watch(learned, optimizer):
        train(learned, optimizer, task(2))
    assert monitor.step == 2


def test_history_without_pandas(
    memory: Behavior, policy: AlertPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"pandas .*pip install 'riprap\[report\]'"):
        Monitor([memory], policy=policy).history()
