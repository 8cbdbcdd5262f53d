"""Training with and without a monitor, compared bit for bit, and the readings checked."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from invariants.test_no_trace import same, state
from riprap import Behavior, Monitor
from support.families import VOCABULARY

Step = Callable[[], Any]
Built = tuple[nn.Module, Any, Step]
IDS = torch.randint(9, VOCABULARY, (40, 10), generator=torch.Generator().manual_seed(2))


def probe_rows(shared: int = 12) -> list[list[int]]:
    """Rows of unequal lengths that begin alike, so that a shared prefix is tried."""
    made = torch.Generator().manual_seed(7)
    start = list(range(10, 10 + shared))
    return [
        start + torch.randint(9, VOCABULARY, (length,), generator=made).tolist()
        for length in (3, 9, 5, 12, 7, 9, 4, 6)
    ]


def row_logits(model: nn.Module, row: Sequence[int]) -> Tensor:
    """The logits after a row that is alone in its batch, in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row])).logits
    for module, mode in modes.items():
        module.training = mode
    return (logits[0, -1] if logits.dim() == 3 else logits[0]).float()


def known(model: nn.Module, rows: Sequence[Sequence[int]] | None = None) -> Behavior:
    """What the model answers now, as a behavior that it passes."""
    rows = probe_rows() if rows is None else rows
    targets = [int(row_logits(model, row).argmax()) for row in rows]
    return Behavior.next_token("known", input_ids=rows, targets=targets)


def margins_alone(model: nn.Module, behavior: Behavior) -> np.ndarray:
    """Margins of a next-token behavior, one probe at a time: the reference."""
    found = []
    for row, target in zip(behavior.probes.rows(), behavior.margins.targets.tolist(), strict=True):
        logits = row_logits(model, row).double()
        right = float(logits[target])
        logits[target] = -torch.inf
        found.append(right - float(logits.max()))
    return np.array(found)


def train(step: Step, steps: int) -> None:
    for number in range(steps):
        torch.manual_seed(100 + number)
        step()


def assert_untouched(
    build: Callable[[], Built], behavior: Callable[[nn.Module], Behavior] = known, steps: int = 8
) -> Monitor:
    """Assert that training ends the same, bit for bit, with a monitor; return the monitor."""
    ends = []
    for watched in (False, True):
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
        model, optimizer, step = build()
        if watched:
            monitor = Monitor([behavior(model)], probe_every=1)
            with monitor.watch(model, optimizer):
                train(step, steps)
        else:
            train(step, steps)
        optimizers = optimizer if isinstance(optimizer, list) else [optimizer]
        ends.append([state(model, one) for one in optimizers])
    assert same(*ends)
    assert monitor.step == steps
    assert_read(monitor, model)
    return monitor


def assert_read(monitor: Monitor, model: nn.Module) -> None:
    """Assert that nothing failed, and that the last margins are those of each probe alone."""
    history = monitor.history()
    failed = history[history.state == "ERROR"]
    assert failed.empty, failed.detail.iloc[0]
    for behavior in monitor.behaviors:
        measured = monitor.behavior_histories[behavior.name].margins[-1]
        np.testing.assert_allclose(measured, margins_alone(model, behavior), rtol=1e-3, atol=2e-4)


def assert_predicted(monitor: Monitor, tolerance: float = 0.1) -> None:
    """Assert that interference tells the change of the mean margin, to first order."""
    history = monitor.history()
    means = history[history.signal == "margin"].set_index("step").value
    steps = history[history.signal == "interference"].set_index("step").value
    change, predicted = means.diff().dropna(), steps.loc[steps.index.isin(means.index)]
    assert len(predicted) == len(change) > 0
    assert np.abs(predicted - change).sum() <= tolerance * np.abs(change).sum()
