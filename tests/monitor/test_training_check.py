"""Training that does not train is counted at each evaluation, and alerted on after two of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from loops import flat, task, train
from riprap import AlertPolicy, Behavior, Monitor
from riprap.detectors import Threshold
from riprap.types import RUN, Level

CALM = AlertPolicy(name="calm", detectors=[Threshold(signal="margin", side="below", value=-1e9)])


def watched(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    behavior: Behavior,
    steps: int,
    before_step: Callable[[int], None] = lambda step: None,
) -> Monitor:
    monitor = Monitor([behavior], policy=CALM, probe_every=2)
    with monitor.watch(model, optimizer):
        for step, (inputs, labels) in enumerate(task(steps), 1):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), labels).backward()
            before_step(step)
            optimizer.step()
    return monitor


def counts(monitor: Monitor, signal: str) -> dict[int, float]:
    history = monitor.history()
    own = history[(history.signal == signal) & (history.behavior == RUN)]
    return dict(zip(own.step, own.value, strict=True))


def not_training(monitor: Monitor) -> list[tuple[int, str]]:
    return [(a.step, str(a.level)) for a in monitor.alerts if a.detector == "not_training"]


def test_ordinary_training_counts_all_tensors(learned: nn.Module, memory: Behavior) -> None:
    monitor = watched(learned, torch.optim.SGD(learned.parameters(), lr=1e-2), memory, 6)
    assert set(counts(monitor, "tensors_with_gradient").values()) == {4.0}
    assert set(counts(monitor, "tensors_moved").values()) == {4.0}
    assert monitor.alerts == []
    assert set(monitor.history().query("signal == 'tensors_moved'").unit) == {"of 4 tensors"}


def test_a_rate_of_0_moves_nothing(learned: nn.Module, memory: Behavior) -> None:
    monitor = watched(learned, torch.optim.SGD(learned.parameters(), lr=0.0), memory, 6)
    assert set(counts(monitor, "tensors_with_gradient").values()) == {4.0}
    assert set(counts(monitor, "tensors_moved").values()) == {0.0}
    assert not_training(monitor) == [(2, "warning")]
    assert "none of 4 trainable tensors moves (the learning rate is 0)" in monitor.alerts[0].message
    assert "Training: the optimizer steps, and none of 4" in monitor.summary()


def test_a_warm_up_that_starts_at_0_is_training(learned: nn.Module, memory: Behavior) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.0)

    def warm_up(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.01 * (step - 1)

    monitor = watched(learned, optimizer, memory, 6, warm_up)
    assert counts(monitor, "tensors_moved")[1] == 0
    assert counts(monitor, "tensors_moved")[2] == 4
    assert monitor.alerts == []


def test_gradients_of_0_on_most_tensors(learned: nn.Module, memory: Behavior) -> None:
    def clear(step: int) -> None:
        for parameter in list(learned.parameters())[:3]:
            assert parameter.grad is not None
            parameter.grad.zero_()

    monitor = watched(learned, torch.optim.SGD(learned.parameters(), lr=1e-2), memory, 8, clear)
    assert set(counts(monitor, "tensors_with_gradient").values()) == {1.0}
    assert not_training(monitor) == [(7, "warning")]  # six steps after the first movement
    text = monitor.alerts[0].message
    assert "3 of 4 trainable tensors have no gradient" in text
    assert "0, 2.weight" in text


def test_an_optimizer_of_copies_moves_nothing(learned: nn.Module, memory: Behavior) -> None:
    """The parameters were replaced after the optimizer was created, as by a resize."""
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    monitor = Monitor([memory], policy=CALM, probe_every=2)
    with monitor.watch(learned, optimizer):
        train(learned, optimizer, task(2))
        learned[2].weight = nn.Parameter(learned[2].weight.detach().clone())
        train(learned, optimizer, task(3))
    assert not_training(monitor)[0] == (3, "warning")
    text = monitor.alerts[0].message
    assert "1 trained tensors are no longer part of the model" in text


class Adapted(nn.Module):
    """Layers with a LoRA-like pair each, of which B starts at 0."""

    def __init__(self, net: nn.Module, broken: bool = False) -> None:
        super().__init__()
        self.net = net.requires_grad_(False)
        self.broken = broken
        self.layers = nn.ModuleList(
            nn.ParameterDict(
                {"a": nn.Parameter(torch.randn(2, 8)), "b": nn.Parameter(torch.zeros(8, 2))}
            )
            for _ in range(4)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            change = inputs @ layer["a"].T @ layer["b"].T
            inputs = inputs + (change.detach() if self.broken and index else change)
        return self.net(inputs)


@pytest.mark.parametrize("warm_up", [False, True])
def test_lora_begins_with_half_of_its_gradients(
    learned: nn.Module, memory: Behavior, warm_up: bool
) -> None:
    model = Adapted(learned)
    optimizer = torch.optim.AdamW(model.layers.parameters(), lr=1e-3, weight_decay=0.0)

    def set_rate(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.0 if warm_up and step == 1 else 1e-3

    monitor = watched(model, optimizer, memory, 8, set_rate)
    found = counts(monitor, "tensors_with_gradient")
    assert found[1] == 4  # B only: A's gradient is exactly 0 while B is 0
    assert found[3] == 8
    assert monitor.alerts == []


def test_one_adapter_of_four_trains(learned: nn.Module, memory: Behavior) -> None:
    model = Adapted(learned, broken=True)
    optimizer = torch.optim.AdamW(model.layers.parameters(), lr=1e-3)
    monitor = watched(model, optimizer, memory, 8)
    assert counts(monitor, "tensors_with_gradient")[3] == 2
    assert [level for _, level in not_training(monitor)] == ["warning"]
    assert "layers.1 to layers.3" in monitor.alerts[0].message


class Experts(nn.Module):
    """A mixture of experts; `dead` names experts that no token reaches."""

    def __init__(self, net: nn.Module, dead: set[int]) -> None:
        super().__init__()
        self.net, self.dead = net, dead
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "mix": nn.Linear(8, 8),
                    "mix_more": nn.Linear(8, 8),
                    "experts": nn.ModuleList(nn.Linear(8, 8) for _ in range(3)),
                }
            )
            for _ in range(2)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = layer["mix_more"](layer["mix"](inputs))
            for index, expert in enumerate(layer["experts"]):
                if index not in self.dead:
                    inputs = inputs + 0.1 * expert(inputs)
        return self.net(inputs)


@pytest.mark.parametrize(("dead", "alerted"), [({0}, False), ({0, 1, 2}, True)])
def test_experts_that_are_never_reached(
    learned: nn.Module, memory: Behavior, dead: set[int], alerted: bool
) -> None:
    """One unused expert is usual; none that trains is not."""
    model = Experts(learned, dead)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with pytest.warns(UserWarning, match="starts below its floor"):
        monitor = watched(model, optimizer, memory, 8)
    assert bool(not_training(monitor)) == alerted
    history = monitor.history().query("signal == 'tensors_with_gradient'")
    assert all("layers.*.experts.*.weight" in detail for detail in history.detail)
    if alerted:
        assert "layers.*.experts.*.weight (6 tensors)" in monitor.alerts[0].message


def test_frozen_layers_are_not_counted(learned: nn.Module, memory: Behavior) -> None:
    learned[0].requires_grad_(False)
    monitor = watched(learned, torch.optim.SGD(learned.parameters(), lr=1e-2), memory, 6)
    assert set(counts(monitor, "tensors_with_gradient").values()) == {2.0}
    assert monitor.alerts == []


def test_it_is_alerted_again_after_training_went_on(learned: nn.Module, memory: Behavior) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.0)

    def set_rate(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 1e-3 if 4 <= step <= 5 else 0.0

    told: list[int] = []
    monitor = Monitor(
        [memory],
        policy=CALM,
        probe_every=1,
        on_alert=lambda alert: told.append(alert.step),
        stop_on=Level.WARNING,
    )
    with monitor.watch(learned, optimizer):
        for step in range(1, 9):
            set_rate(step)
            train(learned, optimizer, task(1))
    assert [step for step, _ in not_training(monitor)] == told == [2, 7]
    assert monitor.should_stop
    assert "stop_on='warning': step 2, warning: training" in str(monitor.stop_reason)


def test_the_counts_leave_no_trace(learned: nn.Module, memory: Behavior) -> None:
    alone = copy.deepcopy(learned)
    train(alone, torch.optim.AdamW(alone.parameters(), lr=1e-2), task(8))
    optimizer = torch.optim.AdamW(learned.parameters(), lr=1e-2)
    with Monitor([memory], policy=CALM).watch(learned, optimizer):
        train(learned, optimizer, task(8))
    assert (flat(alone) == flat(learned)).all()
