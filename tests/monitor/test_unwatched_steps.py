"""Weights that change where no watched step is: said, and never read as an interference of 0."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from loops import flat, mean_margin_gradient, task, train
from riprap import AlertPolicy, Behavior, Monitor, guards, signals
from riprap.errors import ConfigError
from riprap.types import RUN


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def interference(monitor: Monitor) -> Any:
    return monitor.history().query("signal == 'interference'")


def unwatched(monitor: Monitor) -> list[int]:
    return [a.step for a in monitor.alerts if a.detector == "unwatched_change"]


class Idle(torch.optim.Optimizer):
    """What a run with steps inside backward() gives to its trainer."""

    def __init__(self, parameters: Iterator[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 1e-2})

    def step(self, closure: Callable | None = None) -> None:  # type: ignore[override]
        return None


@pytest.mark.parametrize("every_step", [True, False])
@pytest.mark.parametrize("by_optimizer", [True, False])
def test_steps_inside_backward(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, by_optimizer: bool, every_step: bool
) -> None:
    inner = {p: torch.optim.SGD([p], lr=1e-1) for p in learned.parameters()}

    def step(parameter: nn.Parameter) -> None:
        if by_optimizer:
            inner[parameter].step()
        else:
            parameter.data.add_(parameter.grad, alpha=-1e-1)
        parameter.grad = None

    for parameter in learned.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    monitor = Monitor(
        [memory], policy=policy, probe_every=5, signals=[signals.Interference(every_step)]
    )
    optimizer = Idle(learned.parameters())
    with (
        pytest.warns(UserWarning, match="changed outside of the watched steps"),
        monitor.watch(learned, optimizer),
    ):
        for batch in task(12):
            loss_of(learned, batch).backward()
            optimizer.step()
    found = interference(monitor)
    assert set(found.state) == {"ERROR"}
    assert len(found) == (12 if every_step else 10)
    assert found.value.isna().all()
    assert unwatched(monitor) == [0 if by_optimizer else 1]
    errors = monitor.history().query("signal == 'unwatched_change'")
    assert set(errors.state) == {"ERROR"}
    assert set(errors.behavior) == {RUN}
    assert "outside of the watched steps" in monitor.summary()


def test_an_optimizer_made_anew(learned: nn.Module, memory: Behavior, policy: AlertPolicy) -> None:
    first = torch.optim.SGD(learned.parameters(), lr=1e-2)
    monitor = Monitor([memory], policy=policy, probe_every=5)
    with (
        pytest.warns(UserWarning, match=r"after step 3, by another optimizer \(AdamW\)"),
        monitor.watch(learned, first),
    ):
        train(learned, first, task(3))
        train(learned, torch.optim.AdamW(learned.parameters(), lr=1e-1), task(9))
        assert unwatched(monitor) == [3]  # at once, not at the end
    assert monitor.step == 3
    final = monitor.history().query("signal == 'final_score'")
    assert final.value.item() == pytest.approx(
        float((memory.margins(learned, memory.probes) > 0).float().mean())
    )
    assert "changed after step 3" in final.detail.item()


def test_an_optimizer_of_other_parameters_is_nobodys_business(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, recwarn: pytest.WarningsRecorder
) -> None:
    other = nn.Linear(2, 2)
    aside = torch.optim.SGD(other.parameters(), lr=1.0)
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-3)
    monitor = Monitor([memory], policy=policy)
    with monitor.watch(learned, optimizer):
        for batch in task(4):
            other(torch.ones(2)).sum().backward()
            aside.step()
            train(learned, optimizer, [batch])
    assert unwatched(monitor) == []
    assert not [w for w in recwarn if "outside" in str(w.message)]
    assert set(interference(monitor).state) == {"MEASURED"}


def test_a_loop_that_never_steps(learned: nn.Module, memory: Behavior, policy: AlertPolicy) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-1)
    monitor = Monitor([memory], policy=policy)
    with (
        pytest.warns(UserWarning, match="no step of the watched optimizer"),
        monitor.watch(learned, optimizer),
    ):
        for batch in task(40):
            loss_of(learned, batch).backward()
            with torch.no_grad():
                for parameter in learned.parameters():
                    parameter -= 0.3 * parameter.grad
                    parameter.grad = None
    assert monitor.step == 0
    assert unwatched(monitor) == [0]
    final = monitor.history().query("signal == 'final_margin'").value.item()
    assert final == pytest.approx(float(memory.margins(learned, memory.probes).mean()), rel=1e-5)
    assert "no step of the watched optimizer" in monitor.summary()


def test_a_watch_without_steps_and_changes(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    monitor = Monitor([memory], policy=policy)
    with (
        pytest.warns(UserWarning, match="no step of the watched optimizer"),
        monitor.watch(learned, torch.optim.SGD(learned.parameters(), lr=1e-1)),
    ):
        pass
    assert monitor.alerts == []
    own = monitor.history().query("signal == 'step'")
    assert own.state.tolist() == ["NOT_RUN"]


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization as commonly written: two half steps, and no `step`."""

    def __init__(self, parameters: Iterator[nn.Parameter], base: type, **options: Any) -> None:
        super().__init__(parameters, options)
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def half_step(self, sign: float) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if sign > 0:
                    self.state[parameter]["shift"] = 0.05 * parameter.grad
                parameter.add_(self.state[parameter]["shift"], alpha=sign)


def test_the_steps_of_sam_are_seen(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, recwarn: pytest.WarningsRecorder
) -> None:
    optimizer = SAM(learned.parameters(), torch.optim.SGD, lr=1e-2)
    monitor = Monitor([memory], policy=policy, probe_every=1)
    expected = []
    with monitor.watch(learned, optimizer):
        for batch in task(6):
            h, old = mean_margin_gradient(learned, memory), flat(learned)
            loss_of(learned, batch).backward()
            optimizer.half_step(1.0)
            optimizer.zero_grad()
            loss_of(learned, batch).backward()
            optimizer.half_step(-1.0)
            optimizer.base_optimizer.step()
            optimizer.zero_grad()
            expected.append(float(h @ (flat(learned) - old)))
    assert monitor.step == 6
    assert interference(monitor).value.iloc[0] == pytest.approx(expected[0], rel=1e-3)
    assert set(interference(monitor).state) == {"MEASURED"}  # rounding is no change
    assert not [w for w in recwarn if "outside" in str(w.message)]


class Lookahead(torch.optim.Optimizer):
    """Slow weights that are pulled every two steps, by a class that never calls super()."""

    def __init__(self, inner: torch.optim.Optimizer, name: str) -> None:
        setattr(self, name, inner)
        self.inner_name, self.count = name, 0
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, {}
        self.slow = [p.detach().clone() for p in inner.param_groups[0]["params"]]

    def step(self, closure: Callable | None = None) -> None:  # type: ignore[override]
        getattr(self, self.inner_name).step()
        self.count += 1
        if self.count % 2 == 0:
            for parameter, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                slow.add_(parameter.detach() - slow, alpha=0.5)
                parameter.data.copy_(slow)

    def zero_grad(self, set_to_none: bool = True) -> None:
        getattr(self, self.inner_name).zero_grad()


@pytest.mark.parametrize("name", ["optimizer", "inside"])
def test_what_a_wrapper_does_after_the_step_is_said(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, name: str
) -> None:
    optimizer = Lookahead(torch.optim.SGD(learned.parameters(), lr=1e-1), name)
    monitor = Monitor([memory], policy=policy, probe_every=1)
    with (
        pytest.warns(UserWarning, match="outside of the watched steps, between step 2 and step 3"),
        monitor.watch(learned, optimizer),
    ):
        train(learned, optimizer, task(5))
    assert monitor.step == 5
    states = interference(monitor).set_index("step").state
    assert states.tolist() == ["MEASURED", "MEASURED", "ERROR", "MEASURED", "ERROR"]


def test_weights_loaded_in_mid_training(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    start = copy.deepcopy(learned.state_dict())
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-1)
    monitor = Monitor([memory], policy=policy, probe_every=2)
    with (
        pytest.warns(UserWarning, match="between step 4 and step 5"),
        monitor.watch(learned, optimizer),
    ):
        train(learned, optimizer, task(4))
        learned.load_state_dict(start)
        train(learned, optimizer, task(3))
    assert unwatched(monitor) == [5]


def test_weights_swapped_and_swapped_back_are_no_change(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    monitor = Monitor([memory], policy=policy)
    with monitor.watch(learned, optimizer):
        for batch in task(4):
            train(learned, optimizer, [batch])
            own = copy.deepcopy(learned.state_dict())
            learned.load_state_dict({name: 0.5 * part for name, part in own.items()})
            learned.load_state_dict(own)
    assert unwatched(monitor) == []
    assert set(interference(monitor).state) == {"MEASURED"}


class LayerWiseDummyOptimizer(torch.optim.SGD):
    """The name that transformers gives to what stands for layer-wise optimizers."""


class Lomo(torch.optim.SGD):
    pass


@pytest.mark.parametrize("kind", [LayerWiseDummyOptimizer, Lomo])
def test_layer_wise_optimizers_are_refused(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, kind: type
) -> None:
    monitor = Monitor([memory], policy=policy)
    with pytest.raises(ConfigError, match=r"inside backward\(\), where no hook is called; use"):
        monitor.begin(learned, kind(learned.parameters(), lr=1e-2))


def pair(model: nn.Module) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    return [
        torch.optim.SGD(matrices, lr=1e-1),
        torch.optim.AdamW([p for p in model.parameters() if p.ndim == 1], lr=1e-2),
    ]


@contextmanager
def pair_watched(
    model: nn.Module, memory: Behavior, policy: AlertPolicy, optimizers: Any
) -> Iterator[Monitor]:
    monitor = Monitor([memory], policy=policy, probe_every=1, signals=signals.per_step())
    with monitor.watch(model, optimizers):
        yield monitor


@pytest.mark.parametrize("make", [list, tuple])
def test_a_step_of_two_optimizers_is_one_step(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, make: type
) -> None:
    optimizers = pair(learned)
    expected, norms = [], []
    with pair_watched(learned, memory, policy, make(optimizers)) as monitor:
        for batch in task(5):
            h, old = mean_margin_gradient(learned, memory), flat(learned)
            loss_of(learned, batch).backward()
            grads = [p.grad.flatten() for p in learned.parameters()]
            norms.append(float(torch.cat(grads).norm()))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()  # between the two: the gradient was read before
            expected.append(float(h @ (flat(learned) - old)))
            assert monitor.step == len(expected)
    history = monitor.history()
    found = history[history.signal == "interference"].value
    assert found.iloc[0] == pytest.approx(expected[0], rel=1e-3)
    np.testing.assert_allclose(history[history.signal == "norm_gradient"].value, norms, rtol=1e-5)
    alone = copy.deepcopy(learned)
    assert flat(alone).shape == flat(learned).shape
    assert unwatched(monitor) == []


def test_only_one_of_two_optimizers_is_watched(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    first, second = pair(learned)
    with (
        pytest.warns(UserWarning, match=r"another optimizer \(AdamW\) trains 2 tensors"),
        pair_watched(learned, memory, policy, first) as monitor,
    ):
        for batch in task(4):
            loss_of(learned, batch).backward()
            first.step()
            second.step()
    assert unwatched(monitor) == [1]
    assert monitor.step == 4


def test_an_optimizer_that_steps_twice_ends_the_step(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    first, second = pair(learned)
    with pair_watched(learned, memory, policy, [first, second]) as monitor:
        start = flat(learned)
        for index, batch in enumerate(task(4)):
            loss_of(learned, batch).backward()
            first.step()
            if index == 3:
                second.step()
            first.zero_grad()
        assert monitor.step == 4
    norms = monitor.history().query("signal == 'norm_update'").value
    assert len(norms) == 4
    assert norms.sum() >= np.linalg.norm(flat(learned) - start)


def test_the_last_open_step_is_read_at_the_end(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    first, second = pair(learned)
    with pair_watched(learned, memory, policy, [first, second]) as monitor:
        loss_of(learned, task(1)[0]).backward()
        first.step()
        assert monitor.step == 0
    assert monitor.step == 1
    assert unwatched(monitor) == []


def test_optimizers_that_share_parameters_are_refused(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    twice = [torch.optim.SGD(learned.parameters(), lr=1e-2) for _ in range(2)]
    with pytest.raises(ConfigError, match="cannot watch optimizers that share parameters"):
        Monitor([memory], policy=policy).begin(learned, twice)


def test_a_guard_of_two_optimizers_is_refused(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    monitor = Monitor([memory], policy=policy)
    with pytest.raises(ConfigError, match="guard agem: a guard changes the step of one optimizer"):
        monitor.begin(learned, pair(learned), guards.AGEM())


def test_the_last_step_is_read_before_other_weights_are_loaded(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    best = copy.deepcopy(learned.state_dict())
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-1)
    monitor = Monitor([memory], policy=policy, probe_every=50)
    with (
        pytest.warns(UserWarning, match="the weights were changed after step 19"),
        monitor.watch(learned, optimizer),
    ):
        train(learned, optimizer, task(19))
        expected = float(memory.margins(learned, memory.probes).mean())
        monitor.evaluate_last_step()
        learned.load_state_dict(best)
    margins = monitor.history().query("signal == 'margin'")
    assert margins.step.iloc[-1] == 19
    assert margins.value.iloc[-1] == pytest.approx(expected, rel=1e-5)
    final = monitor.history().query("signal == 'final_margin'").value.item()
    assert final == pytest.approx(float(memory.margins(learned, memory.probes).mean()), rel=1e-5)
    assert "with the weights at the end" in monitor.summary()


def test_a_last_step_that_was_not_read_has_no_number(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    best = copy.deepcopy(learned.state_dict())
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-1)
    monitor = Monitor([memory], policy=policy, probe_every=50)
    with pytest.warns(UserWarning, match="after step 19"), monitor.watch(learned, optimizer):
        train(learned, optimizer, task(19))
        learned.load_state_dict(best)
    margins = monitor.history().query("signal == 'margin'")
    assert (margins.step.iloc[-1], margins.state.iloc[-1]) == (19, "NOT_RUN")
    assert monitor.behavior_histories["memory"].steps[-1] < 19


def test_a_head_that_was_replaced_after_the_optimizer_was_made_is_said(
    learned: nn.Module, memory: Behavior
) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    head = nn.Linear(16, 4)
    head.load_state_dict(learned[2].state_dict())
    learned[2] = head
    monitor = Monitor([memory])
    with pytest.warns(UserWarning, match=r"2 trainable tensors .* \(2\.weight, 2\.bias\)"):
        monitor.begin(learned, optimizer)
    monitor.end()
    assert "make the optimizer after the last change" in monitor.summary()


def test_an_optimizer_of_a_part_is_not_stale(learned: nn.Module, memory: Behavior) -> None:
    own = nn.Parameter(torch.zeros(3))  # a loss with a parameter of its own
    optimizer = torch.optim.SGD([*learned.parameters(), own], lr=0.1)
    monitor = Monitor([memory])
    with monitor.watch(learned, optimizer):
        pass
    assert "in no optimizer" not in monitor.summary()
