"""Parameters that join and leave training are watched and guarded from their first step on."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from loops import flat, mean_margin_gradient, task, train
from riprap import AlertPolicy, Behavior, Monitor, guards, signals
from riprap.errors import ConfigError
from riprap.record import Reader


def measured(monitor: Monitor, signal: str = "interference") -> dict[int, float]:
    own = monitor.history().query(f"signal == {signal!r}")
    assert set(own.state) == {"MEASURED"}
    return dict(zip(own.step, own.value, strict=True))


@pytest.mark.parametrize("how", ["unfreeze", "add_group"])
@pytest.mark.parametrize("every", [1, 50])
def test_what_joins_is_watched_from_its_first_step(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, how: str, every: int
) -> None:
    low = list(learned[0].parameters())
    if how == "unfreeze":
        learned[0].requires_grad_(False)
        optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    else:
        optimizer = torch.optim.SGD(learned[2].parameters(), lr=1e-2)
    monitor = Monitor([memory], policy=policy, probe_every=every, signals=signals.per_step())
    with (
        pytest.warns(UserWarning, match="2 tensors joined training before step 13"),
        monitor.watch(learned, optimizer),
    ):
        train(learned, optimizer, task(12))
        learned[0].requires_grad_(True)
        if how == "add_group":
            optimizer.add_param_group({"params": low})
        h, old = mean_margin_gradient(learned, memory), flat(learned)
        train(learned, optimizer, task(1))
        expected = float(h @ (flat(learned) - old))
        length = float(np.linalg.norm(flat(learned) - old))
        train(learned, optimizer, task(3))
    assert measured(monitor)[13] == pytest.approx(expected, rel=1e-3)
    assert measured(monitor, "norm_update")[13] == pytest.approx(length, rel=1e-4)
    assert len(measured(monitor)) == 16
    counts = monitor.history().query("signal == 'tensors_with_gradient'")
    assert counts.unit.iloc[0] == "of 2 tensors"
    assert counts.unit.iloc[-1] == "of 4 tensors"


def test_what_is_frozen_leaves_margins_and_gradients_readable(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    monitor = Monitor([memory], policy=policy, probe_every=1)
    with monitor.watch(learned, optimizer):
        train(learned, optimizer, task(3))
        learned[0].requires_grad_(False)
        for parameter in learned[0].parameters():
            parameter.grad = None
        train(learned, optimizer, task(6))
        assert not any(p.requires_grad for p in learned[0].parameters())
    assert monitor.behavior_histories["memory"].steps == list(range(10))
    assert len(measured(monitor)) == 9
    assert "ERROR" not in set(monitor.history().state)


def test_layers_that_take_turns(learned: nn.Module, memory: Behavior, policy: AlertPolicy) -> None:
    """As LISA: what comes back was never forgotten."""
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    learned[0].requires_grad_(False)
    monitor = Monitor([memory], policy=policy, probe_every=1, signals=signals.per_step())
    expected = {}
    with pytest.warns(UserWarning, match="2 tensors joined"), monitor.watch(learned, optimizer):
        for step, batch in enumerate(task(12), 1):
            for index in (0, 2):
                learned[index].requires_grad_(step % 2 != index // 2)
                learned[index].zero_grad()
            required = [p.requires_grad for p in learned.parameters()]
            learned_copy = copy.deepcopy(learned).requires_grad_(True)
            h, old = mean_margin_gradient(learned_copy, memory), flat(learned)
            train(learned, optimizer, [batch])
            assert [p.requires_grad for p in learned.parameters()] == required
            expected[step] = float(h @ (flat(learned) - old))
    found = measured(monitor)
    fresh = set(monitor.history().query("signal == 'norm_margin_gradient'").step)
    compared = [step for step in found if step - 1 in fresh]
    assert len(compared) >= 4
    for step in compared:  # the protected gradient is that of the step before
        assert found[step] == pytest.approx(expected[step], rel=2e-2, abs=1e-5)


def test_signals_that_store_something_for_each_parameter_start_anew(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    learned[0].requires_grad_(False)
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    own = [*signals.per_step(), signals.LayerInterference(), signals.FisherCosine()]
    own.append(signals.SteepAlignment(k=2))
    monitor = Monitor([memory], policy=policy, probe_every=1, signals=own)
    with pytest.warns(UserWarning, match="joined training"), monitor.watch(learned, optimizer):
        train(learned, optimizer, task(3))
        learned[0].requires_grad_(True)
        train(learned, optimizer, task(3))
    assert "ERROR" not in set(monitor.history().state)
    layers = monitor.history().query("signal == 'interference_layer'").layer
    assert len(set(layers)) >= 1


def test_l2sp_holds_what_joins(learned: nn.Module, memory: Behavior, policy: AlertPolicy) -> None:
    moved = {}
    for late in (False, True):
        model = copy.deepcopy(learned)
        start = flat(model)
        low = list(model[0].parameters())
        groups = model[2].parameters() if late else model.parameters()
        model[0].requires_grad_(not late)
        optimizer = torch.optim.SGD(groups, lr=0.1)
        monitor = Monitor([memory], policy=policy, probe_every=50)
        with monitor.watch(model, optimizer, guards.L2SP(9.0, max_pull=None)):
            for step, batch in enumerate(task(60)):
                if late and step == 10:
                    model[0].requires_grad_(True)
                    optimizer.add_param_group({"params": low, "lr": 0.1})
                train(model, optimizer, [batch])
        moved[late] = float(np.linalg.norm(flat(model) - start))
    free = copy.deepcopy(learned)
    train(free, torch.optim.SGD(free.parameters(), lr=0.1), task(60))
    alone = float(np.linalg.norm(flat(free) - flat(learned)))
    assert moved[True] == pytest.approx(moved[False], rel=0.3)
    assert moved[True] < 0.5 * alone


def test_ema_averages_what_joins(learned: nn.Module, memory: Behavior, policy: AlertPolicy) -> None:
    learned[0].requires_grad_(False)
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    guard = guards.EMA(decay=0.5, every=None)
    monitor = Monitor([memory], policy=policy)
    with pytest.warns(UserWarning, match="joined"), monitor.watch(learned, optimizer, guard):
        train(learned, optimizer, task(2))
        learned[0].requires_grad_(True)
        average = [p.detach().clone() for p in learned[0].parameters()]
        for batch in task(3):
            train(learned, optimizer, [batch])
            for part, own in zip(average, learned[0].parameters(), strict=True):
                part.lerp_(own.detach(), 0.5)
    for part, own in zip(average, guard.average[:2], strict=True):
        torch.testing.assert_close(part, own)


@pytest.mark.parametrize("make", [guards.EWC, guards.OGD, guards.GPM], ids=lambda kind: kind.name)
def test_guards_that_cannot_take_it_up_refuse(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, make: type
) -> None:
    learned[0].requires_grad_(False)
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    monitor = Monitor([memory], policy=policy)
    with (
        pytest.warns(UserWarning, match="joined training"),
        pytest.raises(ConfigError, match="2 tensors joined training after step 2, and the guard"),
        monitor.watch(learned, optimizer, make()),
    ):
        train(learned, optimizer, task(2))
        learned[0].requires_grad_(True)
        train(learned, optimizer, task(1))


def test_a_gradient_guard_protects_what_joins(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    learned[0].requires_grad_(False)
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    monitor = Monitor([memory], policy=policy, probe_every=50)
    guard = guards.AGEM(refresh=1)
    with pytest.warns(UserWarning, match="joined"), monitor.watch(learned, optimizer, guard):
        train(learned, optimizer, task(10))
        learned[0].requires_grad_(True)
        train(learned, optimizer, task(10))
    later = [value for step, value in measured(monitor).items() if step > 10]
    assert min(later) > -1e-4


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no backward pass here")


def test_a_gradient_that_fails_leaves_the_margins(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    broken = [False]

    def margins(model, probes):
        values = memory.margins(model, probes)
        return NoGradient.apply(values) if broken[0] else values

    weak = Behavior("weak", memory.probes, margins)
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    monitor = Monitor([weak], policy=policy, probe_every=1)
    with (
        pytest.warns(UserWarning, match="no protected gradient of 'weak', margins only"),
        monitor.watch(learned, optimizer),
    ):
        train(learned, optimizer, task(2))
        broken[0] = True
        train(learned, optimizer, task(6))
    history = monitor.history()
    assert set(history.query("signal == 'margin'").state) == {"MEASURED"}
    assert monitor.behavior_histories["weak"].steps == list(range(9))
    failed = history.query("signal == 'interference' and state == 'ERROR'")
    assert "no backward pass here" in failed.detail.iloc[0]


def test_a_parameter_that_changes_its_shape(policy: AlertPolicy) -> None:
    """As `resize_token_embeddings`, which keeps the parameter and replaces its data."""
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 3))
    ids = torch.arange(6)
    behavior = Behavior("b", ids, lambda model, probes: 5 - model(probes).square().mean(-1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    monitor = Monitor([behavior], policy=policy, probe_every=1)

    def step() -> None:
        optimizer.zero_grad()
        model(ids).sum().backward()
        optimizer.step()

    with (
        pytest.warns(UserWarning, match="1 tensors changed their shape before step 3"),
        monitor.watch(model, optimizer),
    ):
        step()
        step()
        model[0].weight.data = torch.cat([model[0].weight.data, torch.zeros(2, 4)])
        model[0].weight.grad = None
        for _ in range(3):
            step()
    history = monitor.history()
    assert history.query("signal == 'interference'").step.tolist() == [1, 2, 3, 4, 5]
    assert history.query("signal == 'margin'").step.tolist() == list(range(6))


def test_freezing_is_said_once_and_recorded(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    monitor = Monitor([memory], policy=policy, probe_every=50)
    with (
        pytest.warns(UserWarning, match="2 tensors left training before step 3") as said,
        monitor.watch(learned, optimizer),
    ):
        for step, batch in enumerate(task(6)):
            learned[0].requires_grad_(step < 2 or step == 4)
            train(learned, optimizer, [batch])
    assert len([w for w in said if "left training" in str(w.message)]) == 1
    events = [e for e in Reader(monitor.record).events() if e["kind"] == "trained_parameters"]
    assert [(e["step"], e["facts"]["frozen"]) for e in events] == [(2, 2), (4, 0), (5, 2)]
