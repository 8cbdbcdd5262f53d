"""Tasks in a row: no guard of the protected gradients ends below training without a guard."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guards.cases import old_loss
from riprap import AlertPolicy, Behavior, Monitor, guards
from riprap.guards import Guard
from tiny import PlainLM

TASKS, STEPS, ROWS, VOCABULARY = 4, 120, 40, 20
QUIET = AlertPolicy.parse({"name": "quiet", "detectors": [{"kind": "forecast"}]}, "here")
Rows = tuple[Tensor, Tensor]
MAKE: dict[str, Callable[[], Guard]] = {
    "agem": guards.AGEM,
    "gem": guards.GEM,
    "gem_with_strength": partial(guards.GEM, strength=0.5),
    "gem_of_the_paper": partial(guards.GEM, of="loss", normalize=False),
    "pcgrad": guards.PCGrad,
    "pcgrad_of_the_paper": partial(guards.PCGrad, of="loss", normalize=False),
    "upgrad": guards.UPGrad,
    "upgrad_of_the_paper": partial(guards.UPGrad, of="loss", normalize=False),
    "update_projection": guards.UpdateProjection,
    "safegrad": guards.SafeGrad,
}


def tables(seed: int) -> list[Rows]:
    """Tables of random answers to rows of five tokens."""
    made = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randint(0, VOCABULARY, (ROWS, 5), generator=made),
            torch.randint(0, VOCABULARY, (ROWS,), generator=made),
        )
        for _ in range(TASKS)
    ]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, rows: Rows, seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        chosen = torch.randint(0, ROWS, (16,), generator=made)
        optimizer.zero_grad()
        old_loss(model, (rows[0][chosen], rows[1][chosen])).backward()
        optimizer.step()


def accuracy(model: nn.Module, make: Callable[[], Guard] | None, adam: bool, seed: int) -> float:
    """Mean accuracy over all tables at the end."""
    sequence = tables(seed)
    for index, rows in enumerate(sequence):
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        if adam:
            optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        if make is None or index == 0:
            train(model, optimizer, rows, index)
            continue
        old = [
            Behavior.next_token(f"table {i}", ids[:24], answers[:24], floor=0.01)
            for i, (ids, answers) in enumerate(sequence[:index])
        ]
        with Monitor(old, policy=QUIET).watch(model, optimizer, guard=make()):
            train(model, optimizer, rows, index)
    with torch.no_grad():
        right = [(model(ids)[:, -1].argmax(-1) == answers).float() for ids, answers in sequence]
        assert torch.isfinite(model(sequence[0][0])).all()
    return float(np.mean([part.mean() for part in right]))


def run(make: Callable[[], Guard] | None, adam: bool, seed: int) -> float:
    torch.manual_seed(seed)
    return accuracy(PlainLM(size=VOCABULARY, width=32, depth=2), make, adam, seed)


plain = cache(partial(run, None))


@pytest.mark.slow
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
@pytest.mark.parametrize("name", MAKE)
def test_a_guard_does_no_harm(name: str, adam: bool) -> None:
    assert run(MAKE[name], adam, 0) >= plain(adam, 0)
