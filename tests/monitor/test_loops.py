"""A monitor around loops of every kind: accumulated, resumed, wrapped, frozen, closures."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from loops import flat, mean_margin_gradient, task, train
from riprap import AlertPolicy, Behavior, Monitor, guards, signals
from tiny import make_llama


def test_four_small_batches_read_as_one_large_one(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    kept, histories = copy.deepcopy(learned.state_dict()), []
    for size in (1, 4):
        learned.load_state_dict(kept)
        monitor = Monitor([memory], policy=policy)
        optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
        with monitor.watch(learned, optimizer):
            for inputs, labels in task(12, rows=32):
                optimizer.zero_grad()
                for part in torch.arange(32).chunk(size):
                    loss = functional.cross_entropy(learned(inputs[part]), labels[part])
                    (loss / size).backward()
                optimizer.step()
        assert monitor.step == 12
        histories.append(monitor.history())
    one, four = histories
    assert one.drop(columns="value").equals(four.drop(columns="value"))
    np.testing.assert_allclose(one.value, four.value, rtol=1e-3, atol=1e-5)


def test_a_second_watch_goes_on_with_the_count(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    monitor = Monitor([memory], policy=policy, probe_every=4, signals=signals.per_step())
    first = torch.optim.SGD(learned.parameters(), lr=1e-2)
    with monitor.watch(learned, first):
        train(learned, first, task(6))
    train(learned, first, task(3))  # nobody watches these
    second = torch.optim.SGD(reversed(list(learned.parameters())), lr=1e-2)
    with monitor.watch(learned, second):
        h, old = mean_margin_gradient(learned, memory), flat(learned)
        train(learned, second, task(1))
        predicted = float(h @ (flat(learned) - old))
        train(learned, second, task(4))
    assert monitor.step == 11
    history = monitor.history()
    interference = history[history.signal == "interference"]
    assert interference.step.tolist() == list(range(1, 12))
    assert interference.value.iloc[6] == pytest.approx(predicted, rel=1e-3)
    assert monitor.behavior_histories["memory"].steps[-1] == 11


def test_nothing_is_watched_outside_the_context(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    monitor = Monitor([memory], policy=policy)
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    with monitor.watch(learned, optimizer):
        pass
    train(learned, optimizer, task(3))
    assert monitor.step == 0
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


class Holder:
    """As Accelerate's wrapper: the real optimizer is `.optimizer`."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


def test_the_optimizer_inside_wrappers_is_watched(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    monitor = Monitor([memory], policy=policy)
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    with monitor.watch(learned, Holder(optimizer)):
        train(learned, optimizer, task(3))
    assert monitor.step == 3


def test_frozen_parameters_and_those_of_others_are_left_out(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    learned[0].requires_grad_(False)
    stranger = nn.Parameter(torch.ones(3))
    groups = [{"params": list(learned.parameters())}, {"params": [stranger], "lr": 1.0}]
    optimizer = torch.optim.SGD(groups, lr=1e-2)
    monitor = Monitor([memory], policy=policy, signals=signals.per_step())
    with monitor.watch(learned, optimizer):
        for inputs, labels in task(2):
            optimizer.zero_grad()
            (functional.cross_entropy(learned(inputs), labels) + stranger.sum()).backward()
            grads = [p.grad for p in learned[2].parameters() if p.grad is not None]
            expected = float(torch.cat([g.flatten() for g in grads]).norm())
            optimizer.step()
    norms = monitor.history().query("signal == 'norm_gradient'").value
    assert norms.iloc[-1] == pytest.approx(expected, rel=1e-5)


def test_a_loop_under_no_grad_and_with_closures(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    monitor = Monitor([memory], policy=policy)
    inputs, labels = task(1)[0]
    optimizer = torch.optim.LBFGS(learned.parameters(), lr=0.1, max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(learned(inputs), labels)
        loss.backward()
        return loss

    with monitor.watch(learned, optimizer):
        for _ in range(3):
            optimizer.step(closure)
    sgd = torch.optim.SGD(learned.parameters(), lr=0.1)
    with monitor.watch(learned, sgd), torch.no_grad():
        for _ in range(3):
            for parameter in learned.parameters():
                parameter.grad = torch.ones_like(parameter)
            sgd.step()
    history = monitor.history()
    assert monitor.step == 6
    assert "ERROR" not in set(history.state)
    assert history[history.signal == "interference"].step.tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("by_name", [True, False])
def test_the_gradient_of_a_closure_is_read_after_it_was_made(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, by_name: bool
) -> None:
    """Lightning trains like this: before the closure there is only the last step's gradient."""
    monitor = Monitor([memory], policy=policy, signals=signals.per_step())
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    expected = []

    def closure(batch: tuple[Tensor, Tensor]) -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(learned(batch[0]), batch[1])
        loss.backward()
        expected.append(float(torch.cat([p.grad.flatten() for p in learned.parameters()]).norm()))
        return loss

    with monitor.watch(learned, optimizer):
        for batch in task(4):
            if by_name:
                loss = optimizer.step(closure=lambda batch=batch: closure(batch))
            else:
                loss = optimizer.step(lambda batch=batch: closure(batch))
            assert loss.requires_grad
    norms = monitor.history().query("signal == 'norm_gradient'")
    assert norms.step.tolist() == [1, 2, 3, 4]
    assert norms.value.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("closure", [False, True])
def test_what_signals_take_is_no_training(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, closure: bool
) -> None:
    """Time passes in the signal only: a second at each gradient."""
    seconds = [0.0]

    class Slow(signals.Signal):
        name = "slow"

        def on_gradient(self, view: signals.StepView) -> list[Any]:
            seconds[0] += 1
            return []

    monitor = Monitor([memory], policy=policy, signals=[Slow()])
    monitor._run.meter.clock = lambda: seconds[0]
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)

    def loss() -> Tensor:
        optimizer.zero_grad()
        inputs, labels = task(1)[0]
        found = functional.cross_entropy(learned(inputs), labels)
        found.backward()
        return found

    with monitor.watch(learned, optimizer):
        for _ in range(5):
            if closure:
                optimizer.step(loss)
            else:
                loss()
                optimizer.step()
    assert seconds[0] == 5
    assert monitor._run.meter.training_seconds == 0
    assert monitor._run.meter.seconds["hooks"] == 5


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_no_step(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, fused: bool
) -> None:
    """Gradients are read after unscaling, and an overflow leaves nothing to read.

    A fused optimizer unscales within its step, which changes nothing then and does not count.
    """
    monitor = Monitor([memory], policy=policy, signals=signals.per_step())
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    true_norms = []
    with monitor.watch(learned, optimizer):
        for index, (inputs, labels) in enumerate(task(6)):
            optimizer.zero_grad()
            loss = functional.cross_entropy(learned(inputs), labels)
            grads = torch.autograd.grad(loss, list(learned.parameters()), retain_graph=True)
            scaler.scale(loss * (float("inf") if index == 2 else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
            if index != 2:
                true_norms.append(float(torch.cat([g.flatten() for g in grads]).norm()))
    assert monitor.step == 5
    history = monitor.history()
    assert "ERROR" not in set(history.state)
    skipped = history[history.signal == "step"]
    assert skipped.step.tolist() == [2] * fused  # otherwise the optimizer is not called at all
    assert skipped.detail.str.contains("overflow").all()
    found = history[(history.signal == "norm_gradient") & (history.state == "MEASURED")].value
    np.testing.assert_allclose(found, true_norms, rtol=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_none_for_a_guard(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, fused: bool
) -> None:
    """A gradient that overflowed would stay in what SI sums over steps."""
    guard = guards.SI(of="task")
    monitor = Monitor([memory], policy=policy)
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with monitor.watch(learned, optimizer, guard=guard):
        for index, (inputs, labels) in enumerate(task(4)):
            optimizer.zero_grad()
            loss = functional.cross_entropy(learned(inputs), labels)
            scaler.scale(loss * (float("inf") if index == 2 else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert all(torch.isfinite(part).all() for part in guard.path_integral)
    assert max(action.step for action in monitor.actions) <= 3


def test_a_model_in_half_precision(policy: AlertPolicy) -> None:
    model = make_llama().bfloat16()
    behavior = Behavior.next_token("words", [[3, 7, 9, 12], [5, 6]], [4, 5], floor=0.01)
    monitor = Monitor([behavior], policy=policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with monitor.watch(model, optimizer):
        for _ in range(4):
            optimizer.zero_grad()
            ids = torch.randint(3, 47, (4, 6))
            model(ids, labels=ids).loss.backward()
            optimizer.step()
    history = monitor.history()
    assert "ERROR" not in set(history.state)
    assert len(history[history.signal == "interference"]) == 4
