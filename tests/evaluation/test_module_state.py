"""Buffers, parameters and attributes of every kind are put back after a pass, each by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from riprap import Behavior, Monitor, evaluation
from riprap.errors import BehaviorError
from riprap.evaluation import _module_state as module_state
from riprap.evaluation import preserve_training_state

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
BASE = torch.arange(12.0)


def grow(buffer: Tensor) -> None:
    buffer.resize_(buffer.numel() + 500).fill_(1.0)


def free(buffer: Tensor) -> None:
    buffer.untyped_storage().resize_(0)


def assign(buffer: Tensor) -> None:
    buffer.data = torch.ones(5, dtype=buffer.dtype)


KINDS: dict[str, tuple[Callable[[], Tensor], Callable[[Tensor], Any]]] = {
    "grown": (lambda: torch.arange(3.0), grow),
    "shrunk": (lambda: torch.arange(6.0), lambda b: b.resize_(2).zero_()),
    "freed": (lambda: torch.arange(6.0), free),
    "new data": (lambda: torch.arange(6.0), assign),
    "other dtype": (lambda: torch.arange(6), lambda b: b.data.fill_(7)),
    "NaN": (lambda: torch.full((3,), float("nan")), lambda b: b.zero_()),
    "one byte": (lambda: torch.tensor([True, False, True]), lambda b: b.logical_not_()),
    "expanded": (lambda: torch.arange(4.0).expand(3, 4), lambda b: b[0].fill_(9.0)),
    "view": (lambda: BASE.clone()[2:9:2], lambda b: b.mul_(3)),
    "windows": (lambda: torch.arange(8.0).unfold(0, 3, 1), lambda b: b[2].fill_(5.0)),
    "transposed": (lambda: torch.arange(6.0).view(2, 3).T, lambda b: b.t_().add_(1)),
    "scalar": (lambda: torch.tensor(4), lambda b: b.add_(1)),
    "complex": (lambda: torch.ones(3, dtype=torch.complex64), lambda b: b.mul_(2j)),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.randn(9), 0.1, 0, torch.qint8),
        lambda b: b.copy_(torch.zeros(9)),
    ),
    "sparse": (lambda: torch.eye(4).to_sparse(), lambda b: b.zero_()),
    "sparse values": (lambda: torch.eye(4).to_sparse(), lambda b: b._values().data.mul_(2)),
    "compressed rows": (lambda: torch.eye(4).to_sparse_csr(), lambda b: b.values().mul_(2)),
    "empty": (lambda: torch.zeros(0), grow),
}


def content(tensor: Tensor) -> Tensor:
    if tensor.is_quantized:
        return tensor.int_repr()
    return tensor.to_dense() if tensor.layout != torch.strided else tensor


class Holder(nn.Module):
    """A buffer that a pass changes in evaluation mode, before one that it counts in."""

    def __init__(self, buffer: Tensor, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(8, 2), change
        self.register_buffer("first", buffer)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        if not self.training:
            self.change(self.first)
        return self.linear(inputs)


def margins(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs)[:, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_buffer_is_put_back(kind: str) -> None:
    make, change = KINDS[kind]
    model = Holder(make(), change).train()
    before, shape, stride = content(model.first).clone(), model.first.shape, None
    if model.first.layout == torch.strided:
        stride = model.first.stride()
    buffer = model.first
    for _ in range(3):
        evaluation.evaluate(Behavior("b", X, margins), model)
        assert model.first is buffer
        assert buffer.shape == shape
        assert stride is None or buffer.stride() == stride
        assert torch.equal(torch.nan_to_num(content(buffer)), torch.nan_to_num(before))
        assert bool(content(buffer).isnan().any()) == bool(before.isnan().any())
        assert float(model.calls) == 0
    model.eval()
    model(X)  # outside of a pass, the buffer does change
    now = content(model.first) if kind != "freed" else torch.zeros(0)
    assert now.shape != before.shape or not torch.equal(now, before)


def test_buffers_that_share_storage_and_a_meta_buffer() -> None:
    whole = torch.arange(10.0)
    model = Holder(whole[2:6], lambda b: b.fill_(3.0))
    model.register_buffer("whole", whole)
    model.register_buffer("nothing", torch.zeros(3, device="meta"))
    evaluation.evaluate(Behavior("b", X, margins), model)
    assert torch.equal(whole, torch.arange(10.0))
    assert model.first.data_ptr() == whole[2:].data_ptr()
    assert model.nothing.is_meta


def test_what_cannot_be_put_back_is_said_after_everything_else_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Holder(torch.arange(3.0), lambda b: b.fill_(5.0))

    def fail(content: Any) -> None:
        if content._buffer is model.first:
            raise RuntimeError("it is locked")
        original(content)

    original = module_state._Content.restore
    monkeypatch.setattr(module_state._Content, "restore", fail)
    with pytest.raises(BehaviorError, match=r"buffer 'first' \(RuntimeError: it is locked\)"):
        evaluation.evaluate(Behavior("b", X, margins), model)
    assert float(model.calls) == 0
    assert model.training


def test_attributes_and_the_buffer_that_goes_with_them_are_put_back() -> None:
    """As rotary embeddings keep the longest length, and the frequencies for it."""

    class Longest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.longest = nn.Linear(8, 2), 2
            self.register_buffer("scale", torch.ones(1))

        def forward(self, inputs: Tensor) -> Tensor:
            if len(inputs) > self.longest:
                self.longest, self.cache = len(inputs), inputs
                self.scale = self.scale / 2
            return self.linear(inputs) * self.scale

    model = Longest()
    evaluation.evaluate(Behavior("b", X, margins), model)
    assert (model.longest, float(model.scale)) == (2, 1.0)
    assert not hasattr(model, "cache")


class Repacking(nn.Module):
    """A frozen layer that packs its weight for inference, for good, on a route without a graph."""

    def __init__(self, bias_in_training: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8), requires_grad=False)
        self.packed, self.bias_in_training = False, bias_in_training

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training and not self.packed:
            self.weight.data, self.packed = self.weight.data.T.contiguous().bfloat16(), True
        if self.packed:
            return (inputs.detach() @ self.weight.float()).detach()
        return inputs @ self.weight.T + self.bias_in_training


def adapted(**options: Any) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 8), Repacking(**options), nn.Linear(8, 4))


def test_a_layer_that_repacks_its_weight_stays_in_training_mode() -> None:
    plain = adapted()
    wanted = torch.autograd.grad(margins(plain, X).mean(), plain[0].weight)[0]
    model = adapted()
    pointer = model[1].weight.data_ptr()
    trained = [model[0].weight, model[2].weight]
    with pytest.warns(UserWarning, match=r"riprap: 1 \(Repacking\) replaces its parameters"):
        found = evaluation.evaluate(Behavior("b", X, margins), model, trained)
    assert torch.allclose(found.gradient[0], wanted)
    np.testing.assert_allclose(found.margins, margins(plain, X).detach().numpy(), rtol=1e-5)
    assert model[1].weight.data_ptr() == pointer
    assert not model[1].packed
    with preserve_training_state(model):
        assert [module.training for module in model] == [False, True, False]


@pytest.mark.filterwarnings("error")
def test_a_layer_that_repacks_is_evaluated_under_w_error(caplog: pytest.LogCaptureFixture) -> None:
    found = evaluation.evaluate(Behavior("b", X, margins), adapted())
    np.testing.assert_allclose(found.margins, margins(adapted(), X).detach().numpy(), rtol=1e-5)
    assert "replaces its parameters" in caplog.text


@pytest.mark.filterwarnings("ignore:riprap. 1 .Repacking. replaces")
def test_a_layer_that_repacks_and_computes_something_else_in_training_mode_is_refused() -> None:
    model = adapted(bias_in_training=9.0)
    with pytest.raises(BehaviorError, match="computes something else in training mode"):
        evaluation.evaluate(Behavior("b", X, margins), model)


@pytest.mark.parametrize("write", [lambda p: p.data.mul_(2), lambda p: p.data.copy_(p.flip(0))])
def test_a_pass_that_writes_to_parameters_is_refused_before_training(
    write: Callable[[Tensor], Any],
) -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))

    def writing(model: Any, inputs: Tensor) -> Tensor:
        write(model[1].weight)
        return model(inputs)[:, 0]

    monitor = Monitor([Behavior("b", X, writing, floor=0.01)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(BehaviorError, match=r"wrote to the parameter '1\.weight'"):
        monitor.begin(model, optimizer)


def test_a_parameter_that_is_replaced_is_put_back() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    weight = model[0].weight

    def replacing(model: Any, inputs: Tensor) -> Tensor:
        values = model(inputs)[:, 0]
        model[0].weight = nn.Parameter(torch.zeros(4, 8))
        return values

    with pytest.warns(UserWarning, match="replaces its parameters"):
        evaluation.evaluate(Behavior("b", X, replacing), model)
    assert model[0].weight is weight


class Large(nn.Module):
    """A model with buffers of a size that is not copied at every pass."""

    def __init__(self, change: Callable[[nn.Module], Any] = lambda _: None) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(8, 2), change
        self.register_buffer("table", torch.arange(100_000.0))
        self.register_buffer("packed", torch.arange(400_000, dtype=torch.int32))

    def forward(self, inputs: Tensor) -> Tensor:
        self.change(self)
        return self.linear(inputs)


def copied_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the parts of tensors that are copied from now on."""
    sizes: list[int] = []
    original = module_state._Part.__init__

    def note(part: Any, tensor: Tensor) -> None:
        sizes.append(tensor.nbytes)
        original(part, tensor)

    monkeypatch.setattr(module_state._Part, "__init__", note)
    return sizes


def test_large_buffers_are_copied_once_and_those_of_quantized_weights_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, sizes = Large(), copied_bytes(monkeypatch)
    evaluation.evaluate(Behavior("b", X, margins), model)
    assert sizes == [400_000]
    for _ in range(3):
        evaluation.evaluate(Behavior("b", X, margins), model)
    assert sizes == [400_000]


def test_a_large_buffer_to_which_passes_write_is_always_put_back() -> None:
    model = Large(lambda m: m.table.mul_(2))
    for _ in range(3):
        evaluation.evaluate(Behavior("b", X, margins), model)
        assert torch.equal(model.table, torch.arange(100_000.0))


@pytest.mark.parametrize(("name", "late"), [("table", True), ("packed", False), ("packed", True)])
@pytest.mark.parametrize("write", [lambda b: b.add_(1), lambda b: b.data.add_(1)])
def test_a_write_to_a_large_buffer_that_is_not_copied_is_refused(
    name: str, late: bool, write: Callable[[Tensor], Any]
) -> None:
    model = Large()
    if late:
        evaluation.evaluate(Behavior("b", X, margins), model)
    model.change = lambda m: write(getattr(m, name))
    with pytest.raises(BehaviorError, match=rf"buffer '{name}' \(RuntimeError: it was written to"):
        evaluation.evaluate(Behavior("b", X, margins), model)
    assert model.training


def test_one_element_of_a_large_buffer_is_seen_before_training() -> None:
    """A sample would not show it; the monitor's first evaluation compares everything."""
    model = Large()

    def writing(model: Any, inputs: Tensor) -> Tensor:
        model.table.data[4321] = -1.0
        return model(inputs)[:, 0]

    behaviors = [Behavior("a", X, margins, floor=0.01), Behavior("b", X, writing, floor=0.01)]
    monitor = Monitor(behaviors)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(BehaviorError, match="wrote to the buffer 'table'"):
        monitor.begin(model, optimizer)


def test_a_large_buffer_that_is_replaced_or_freed_is_seen() -> None:
    model = Large()
    evaluation.evaluate(Behavior("b", X, margins), model)
    buffer = model.table
    model.change = lambda m: setattr(m, "table", torch.zeros(3))
    evaluation.evaluate(Behavior("b", X, margins), model)
    assert model.table is buffer and torch.equal(buffer, torch.arange(100_000.0))
    model.change = lambda m: m.table.untyped_storage().resize_(0)
    with pytest.raises(BehaviorError, match="buffer 'table'"):
        evaluation.evaluate(Behavior("b", X, margins), model)
