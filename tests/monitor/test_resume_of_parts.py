"""Resuming where parts have changed: optimizers' order, trained parameters, kept probes, starts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from riprap import AlertPolicy, Behavior, Monitor, guards
from riprap.errors import ConfigError
from riprap.guards import Guard
from riprap.record import Reader


class Twins(nn.Module):
    """Two parts of equal shapes, so that a mix-up of their gradients has no other sign."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.two(torch.tanh(self.one(inputs)))))


def twins() -> Twins:
    torch.manual_seed(3)
    return Twins()


def optimizers(model: Twins) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(part.parameters(), lr=0.05) for part in (model.one, model.two)]


def step(model: nn.Module, several: list[torch.optim.Optimizer], seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    inputs, labels = torch.randn(8, 8, generator=made), torch.randint(0, 4, (8,), generator=made)
    for one in several:
        one.zero_grad()
    functional.cross_entropy(model(inputs), labels).backward()
    for one in several:
        one.step()


def interference(monitor: Monitor, at: int) -> float:
    history = monitor.history()
    return float(history[(history.signal == "interference") & (history.step == at)].value.iloc[0])


def test_the_order_of_optimizers_does_not_matter(memory: Behavior, policy: AlertPolicy) -> None:
    model = twins()
    several = optimizers(model)
    first = Monitor([memory], policy=policy, probe_every=100)
    with first.watch(model, several):
        for number in range(3):
            step(model, several, number)
        state, saved = copy.deepcopy(first.state_dict()), copy.deepcopy(model.state_dict())
        step(model, several, 3)
    expected = interference(first, 4)
    again = twins()
    again.load_state_dict(saved)
    reversed_order = optimizers(again)[::-1]
    second = Monitor([memory], policy=policy, probe_every=100)
    second.load_state_dict(state)
    with second.watch(again, reversed_order):
        step(again, reversed_order, 3)
    assert interference(second, 4) == pytest.approx(expected, rel=1e-5)


def test_what_thawed_and_what_froze_is_resumed(memory: Behavior, policy: AlertPolicy) -> None:
    model = twins()
    several = [torch.optim.SGD(model.parameters(), lr=0.05)]
    model.one.requires_grad_(False)
    first = Monitor([memory], policy=policy, probe_every=1)
    with pytest.warns(UserWarning, match="joined training"), first.watch(model, several):
        step(model, several, 0)
        model.one.requires_grad_(True)
        model.head.requires_grad_(False)
        step(model, several, 1)
        state, saved = copy.deepcopy(first.state_dict()), copy.deepcopy(model.state_dict())
        step(model, several, 2)
    again = twins()
    again.load_state_dict(saved)
    again.head.requires_grad_(False)
    optimizer = [torch.optim.SGD(again.parameters(), lr=0.05)]
    second = Monitor([memory], policy=policy, probe_every=1)
    second.load_state_dict(state)
    with second.watch(again, optimizer):
        step(again, optimizer, 2)
    assert interference(second, 3) == pytest.approx(interference(first, 3), rel=1e-5)


def test_another_model_is_refused_by_the_name_of_a_parameter(
    memory: Behavior, learned: nn.Module, policy: AlertPolicy
) -> None:
    model = twins()
    several = optimizers(model)
    first = Monitor([memory], policy=policy)
    with first.watch(model, several):
        step(model, several, 0)
        state = copy.deepcopy(first.state_dict())
    second = Monitor([memory], policy=policy)
    second.load_state_dict(state)
    with pytest.raises(ConfigError, match=r"with a parameter 'one\.weight', which this model does"):
        second.begin(learned, torch.optim.SGD(learned.parameters(), lr=0.1))


def rows() -> Behavior:
    """Probes of which a random model passes some."""
    return Behavior.next_token("rows", [[index, 1] for index in range(12)], [0] * 6 + [1] * 6)


class Bag(nn.Module):
    """Logits of (n, T, vocabulary) from token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(12, 8), nn.Linear(8, 12)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids).cumsum(1))


@pytest.mark.parametrize("saved", [True, False])
def test_kept_probes_must_be_kept_again(saved: bool, policy: AlertPolicy) -> None:
    torch.manual_seed(1)
    model = Bag()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    first = Monitor([rows()], policy=policy, keep_passing=saved)
    with torch.no_grad():
        model.head.bias[0] += 5.0  # it passes the first half
    with first.watch(model, optimizer):
        state = copy.deepcopy(first.state_dict())
    second = Monitor([rows()], policy=policy, keep_passing=not saved)
    with pytest.raises(ConfigError, match=f"keep_passing={saved}, and this one has {not saved}"):
        second.load_state_dict(state)


class Refusing(Guard):
    """A guard that supports nothing."""

    name = "refusing"

    def start(self, view: Any) -> None:
        raise ConfigError("this guard supports nothing")


def test_after_a_refused_guard_the_monitor_can_begin(
    memory: Behavior, learned: nn.Module, policy: AlertPolicy, tmp_path: Any
) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.01)
    monitor = Monitor([memory], policy=policy, run_dir=tmp_path)
    with pytest.raises(ConfigError, match="supports nothing"):
        monitor.begin(learned, optimizer, Refusing())
    with monitor.watch(learned, optimizer, guards.AGEM()):
        learned(torch.ones(2, 8)).sum().backward()
        optimizer.step()
    assert monitor.behavior_histories["memory"].steps == [0, 1]
    with Reader(tmp_path) as reader:
        margins = [r for r in reader.readings() if r.signal == "margin" and r.step == 0]
    assert len(margins) == 1
