"""Under `torch.compile`, a monitor adds no compilation, and loses no reading."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap import Behavior, Monitor, signals
from tiny import PlainLM

IDS = torch.randint(3, 41, (24, 9), generator=torch.Generator().manual_seed(2))
pytestmark = pytest.mark.filterwarnings("ignore:behavior .* before training")


def words() -> Behavior:
    return Behavior.next_token("words", input_ids=IDS[:10, :5], targets=IDS[:10, 5], floor=0.01)


def loss(model: nn.Module, ids: Tensor) -> Tensor:
    return functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


class Compiler:
    """Backend that counts the graphs it gets, and those with symbolic shapes."""

    def __init__(self) -> None:
        torch._dynamo.reset()
        self.graphs = self.dynamic = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        self.dynamic += any(isinstance(value, torch.SymInt) for value in inputs)
        return graph.forward


def run(kind: str, watched: bool) -> tuple[list[Tensor], int, int, Monitor | None]:
    backend = Compiler()
    torch.manual_seed(5)
    model: Any = PlainLM().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    called, step = model, optimizer.step
    if kind == "module":
        model.compile(backend=backend)
    elif kind == "wrapper":
        called = torch.compile(model, backend=backend)
    elif kind == "block":
        model.blocks[1] = torch.compile(model.blocks[1], backend=backend)
    elif kind == "optimizer":
        step = torch.compile(optimizer.step, backend=backend)
    monitor = Monitor([words()], probe_every=2, signals=signals.per_step()) if watched else None
    if monitor is not None:
        monitor.begin(called, optimizer)
    for i in range(12):
        optimizer.zero_grad()
        loss(called, IDS[i : i + 6]).backward()
        step()
    if monitor is not None:
        monitor.end()
    return [p.detach() for p in model.parameters()], backend.graphs, backend.dynamic, monitor


@pytest.mark.parametrize("kind", ["module", "wrapper", "block", "optimizer"])
def test_a_monitor_adds_no_compilation_and_reads_everything(kind: str) -> None:
    plain, graphs, dynamic, _ = run(kind, watched=False)
    weights, graphs_watched, dynamic_watched, monitor = run(kind, watched=True)
    assert graphs > 0
    assert (graphs_watched, dynamic_watched) == (graphs, dynamic)
    assert all(map(torch.equal, plain, weights))
    assert monitor is not None
    history = monitor.history()
    assert monitor.step == 12
    assert "ERROR" not in set(history.state)
    interference = history[history.signal == "interference"].value
    assert len(interference) == 12
    assert (interference.abs() > 0).all()
    eager = run("eager", watched=True)[3]
    assert eager is not None
    expected = eager.history()
    expected = expected[expected.signal == "interference"].value
    assert interference.to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-4)
