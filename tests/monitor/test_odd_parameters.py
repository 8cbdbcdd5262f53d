"""Sparse gradients are read; complex parameters, and those without a shape, are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap import Behavior, Monitor, guards, signals
from riprap.errors import ConfigError

IDS = torch.randint(0, 20, (32, 4), generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 6, (32,), generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self, sparse: bool = True, bag: bool = False) -> None:
        super().__init__()
        torch.manual_seed(4)
        kind: Any = nn.EmbeddingBag if bag else nn.Embedding
        self.embed, self.head, self.bag = kind(20, 8, sparse=sparse), nn.Linear(8, 6), bag

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids) if self.bag else self.embed(ids).mean(1))


def own(model: nn.Module) -> Behavior:
    with torch.no_grad():
        targets = model(IDS[:8]).argmax(1)
    return Behavior.next_token("own", input_ids=IDS[:8], targets=targets, floor=0.01)


def sgd(model: Net) -> Any:
    return torch.optim.SGD(model.parameters(), lr=0.05)


def sparse_adam(model: Net) -> Any:
    return torch.optim.SparseAdam(model.embed.parameters(), lr=1e-3)


def train(model: Net, optimizer: Any, steps: int = 8) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(IDS), LABELS).backward()
        optimizer.step()


@pytest.mark.parametrize("bag", [False, True])
@pytest.mark.parametrize("make", [sgd, sparse_adam])
def test_sparse_gradients_are_read_and_training_is_the_same(
    make: Callable[[Net], Any], bag: bool
) -> None:
    plain, model, dense = Net(bag=bag), Net(bag=bag), Net(bag=bag, sparse=False)
    train(plain, make(plain))
    monitor = Monitor([own(model)], probe_every=1, signals=signals.per_step())
    optimizer = make(model)
    with monitor.watch(model, optimizer):
        train(model, optimizer)
    assert all(map(torch.equal, plain.parameters(), model.parameters()))
    assert model.embed.weight.grad.is_sparse
    history = monitor.history()
    assert "ERROR" not in set(history.state)
    predicted = history[history.signal == "interference"].value.to_numpy()
    means = np.array([m.mean() for m in monitor.behavior_histories["own"].margins])
    np.testing.assert_allclose(predicted, np.diff(means), rtol=0.1, atol=1e-4)
    functional.cross_entropy(dense(IDS), LABELS).backward()
    watched = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [
        p.grad
        for p, q in zip(dense.parameters(), model.parameters(), strict=True)
        if any(q is one for one in watched)
    ]
    norm = sum(float(grad.double().square().sum()) for grad in grads) ** 0.5
    first = history[(history.signal == "norm_gradient") & history.value.notna()].value.iloc[0]
    assert first == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("make", [sgd, sparse_adam])
def test_a_guard_changes_sparse_gradients(make: Callable[[Net], Any]) -> None:
    model = Net()
    behavior, optimizer = own(model), make(model)
    wrong = (behavior.margins.targets + 1) % 6
    monitor = Monitor([behavior], probe_every=1)
    with monitor.watch(model, optimizer, guard=guards.AGEM()):
        optimizer.zero_grad()
        functional.cross_entropy(model(IDS[:8]), wrong).backward()
        optimizer.step()
    assert model.embed.weight.grad.is_sparse
    assert any(action.applied for action in monitor.actions)
    last = monitor.behavior_histories["own"].margins[1].mean()
    plain = Net()
    steps = make(plain)
    functional.cross_entropy(plain(IDS[:8]), wrong).backward()
    steps.step()
    rows = torch.arange(8)
    logits = plain(IDS[:8]).detach()
    right = logits[rows, behavior.margins.targets]
    logits[rows, behavior.margins.targets] = float("-inf")
    assert last > float((right - logits.max(1).values).mean())


def test_complex_parameters_are_refused_before_training() -> None:
    model = Net(sparse=False)
    model.waves = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    with pytest.raises(ConfigError, match="parameter 'waves': it contains complex numbers"):
        Monitor([own(model)]).begin(model, sgd(model))
    model.waves.requires_grad_(False)
    with Monitor([own(model)]).watch(model, sgd(model)):
        pass
    model.waves.requires_grad_(True)
    with Monitor([own(model)], modules=["head"]).watch(model, sgd(model)):
        pass


def test_parameters_without_a_shape_are_refused_before_training() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    behavior = Behavior("b", torch.ones(2, 4), lambda m, x: m(x)[:, 0])
    with pytest.raises(ConfigError, match=r"parameter '1\.weight': it has no shape yet"):
        Monitor([behavior]).begin(model, optimizer)


def test_scalar_and_empty_parameters_are_read() -> None:
    model = Net(sparse=False)
    model.scale, model.none = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.zeros(0, 3))
    model.forward = lambda ids: Net.forward(model, ids) * model.scale + model.none.sum()
    monitor = Monitor([own(model)], probe_every=1)
    optimizer = sgd(model)
    with monitor.watch(model, optimizer):
        train(model, optimizer)
    assert "ERROR" not in set(monitor.history().state)


def test_a_gradient_that_fails_leaves_the_margins_and_a_reason() -> None:
    model = Net(sparse=False)
    behavior, fails = own(model), []

    def fail(gradient: Tensor) -> Tensor:
        if fails:
            raise RuntimeError("out of memory, say")
        return gradient

    class Margin(type(behavior.margins)):
        def from_logits(self, logits: Tensor) -> Tensor:
            values = super().from_logits(logits)
            if values.requires_grad:
                values.register_hook(fail)
            return values

    behavior.margins.__class__ = Margin
    monitor, optimizer = Monitor([behavior], probe_every=1), sgd(model)
    message = "no protected gradient of 'own', margins only: RuntimeError: out of memory"
    with pytest.warns(UserWarning, match=message), monitor.watch(model, optimizer):
        train(model, optimizer, 2)
        fails.append(True)
        train(model, optimizer, 2)
        fails.clear()
        train(model, optimizer, 2)
    history = monitor.history()
    assert len(monitor.behavior_histories["own"].steps) == 7
    errors = history[history.state == "ERROR"]
    assert set(errors.signal) == {"interference"}
    assert errors.detail.str.contains("out of memory").all()
    assert set(errors.step) & {3, 4}
    read = history[(history.signal == "interference") & (history.state == "MEASURED")]
    assert set(read.step) >= {1, 2}  # before the failure


def test_parameters_frozen_in_mid_run_leave_the_gradient_of_the_others() -> None:
    model = Net(sparse=False)
    monitor, optimizer = Monitor([own(model)], probe_every=1), sgd(model)
    with monitor.watch(model, optimizer):
        train(model, optimizer, 2)
        model.embed.weight.requires_grad_(False)
        model.embed.weight.grad = None
        for _ in range(3):
            model.head.zero_grad()
            functional.cross_entropy(model(IDS), LABELS).backward()
            optimizer.step()
    assert "ERROR" not in set(monitor.history().state)
    assert len(monitor.behavior_histories["own"].steps) == 6
