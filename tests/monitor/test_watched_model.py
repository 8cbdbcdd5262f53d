"""A monitor follows one model: another one, or the same one set back, is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from loops import task, train
from riprap import AlertPolicy, Behavior, Monitor
from riprap.errors import ConfigError
from riprap.monitor._watched_model import WatchedModel
from riprap.record import Reader


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-2)


def after_a_watch(model: nn.Module, memory: Behavior, policy: AlertPolicy) -> Monitor:
    monitor = Monitor([memory], policy=policy)
    optimizer = sgd(model)
    with monitor.watch(model, optimizer):
        train(model, optimizer, task(5))
    return monitor


def test_another_model_is_refused(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    fold = copy.deepcopy(learned)
    monitor = after_a_watch(learned, memory, policy)
    with pytest.raises(ConfigError, match=r"watched another model.*new Monitor for each model"):
        monitor.begin(fold, sgd(fold))
    assert not monitor.watching
    assert monitor.step == 5


def test_another_model_is_refused_after_the_first_is_gone(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    first, second = copy.deepcopy(learned), copy.deepcopy(learned)
    monitor = after_a_watch(first, memory, policy)
    del first
    with pytest.raises(ConfigError, match="watched another model"):
        monitor.begin(second, sgd(second))


def test_a_model_set_back_to_the_start_is_refused(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    start = copy.deepcopy(learned.state_dict())
    monitor = after_a_watch(learned, memory, policy)
    learned.load_state_dict(start)
    with pytest.raises(ConfigError, match="back at the weights with which this monitor began"):
        monitor.begin(learned, sgd(learned))


@pytest.mark.parametrize("other", [False, True])
def test_the_same_weights_go_on(
    learned: nn.Module,
    memory: Behavior,
    policy: AlertPolicy,
    other: bool,
    recwarn: pytest.WarningsRecorder,
) -> None:
    monitor = after_a_watch(learned, memory, policy)
    model = copy.deepcopy(learned) if other else learned  # as loaded from a checkpoint
    optimizer = sgd(model)
    with monitor.watch(model, optimizer):
        train(model, optimizer, task(3))
    assert monitor.step == 8
    assert not [w for w in recwarn if "riprap" in str(w.message)]


def test_steps_between_two_watches_are_said(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    monitor = after_a_watch(learned, memory, policy)
    train(learned, sgd(learned), task(3))
    optimizer = sgd(learned)
    with (
        pytest.warns(UserWarning, match="the weights changed between two watches"),
        monitor.watch(learned, optimizer),
    ):
        train(learned, optimizer, task(1))
    assert "weights_replaced" in [event["kind"] for event in Reader(monitor.record).events()]


def test_a_watch_that_was_refused_leaves_the_monitor_free(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    monitor = Monitor([memory], policy=policy)
    with pytest.raises(ConfigError):
        monitor.begin(learned, None)
    model = copy.deepcopy(learned)
    with monitor.watch(model, optimizer := sgd(model)):
        train(model, optimizer, task(1))
    assert monitor.step == 1


def test_weights_are_compared_where_they_can_be(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model may have moved to another device; torch compares tensors on one device only."""
    model = WatchedModel(learned, [*learned.parameters()])
    moved: list[Tensor] = []
    to_cpu = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda part: (moved.append(part), to_cpu(part))[1])
    assert not model.has_changed()
    assert len(moved) == 2 * len([*learned.parameters()])
