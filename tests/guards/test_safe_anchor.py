"""SafeAnchor: the projection of each tensor, its relaxation, and the repair."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guards.cases import (
    ANSWERS,
    OLD,
    Run,
    behaviors,
    last,
    lessons,
    monitor_of,
    old_loss,
    replayable,
    start,
)
from guards.step_log import log_steps, near, used
from riprap import Behavior, guards
from riprap.errors import ConfigError
from riprap.guards.projection._safe_anchor import leading_directions


def fisher() -> tuple[list[torch.Tensor], list[float]]:
    """The eigenvectors of each tensor's Fisher that hold 0.9 of its trace, and the trace."""
    model = start().double()
    parameters = list(model.parameters())
    rows = []
    for at in range(len(OLD)):
        loss = torch.nn.functional.cross_entropy(
            last(model, OLD[at : at + 1]), ANSWERS[at : at + 1]
        )
        rows.append([part.flatten() for part in torch.autograd.grad(loss, parameters)])
    bases, traces = [], []
    for parts in zip(*rows, strict=True):
        own = torch.stack(parts)
        values, vectors = torch.linalg.eigh(own.T @ own / len(own))
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        count = int((values.cumsum(0) < 0.9 * values.sum()).sum()) + 1
        bases.append(vectors[:, :count])
        traces.append(float(values.sum()))
    return bases, traces


@pytest.mark.parametrize("normalize", [True, False])
def test_the_step_is_that_of_the_formula(normalize: bool) -> None:
    bases, traces = fisher()
    mean = sum(traces) / len(traces) if normalize else 1.0
    strictness = 0.8 if normalize else 0.5 / max(traces)
    seen, _ = log_steps(guards.SafeAnchor(strictness=strictness, normalize=normalize), steps=3)
    for step in seen:
        expected = []
        for own, basis, trace in zip(step.task, bases, traces, strict=True):
            relaxed, flat = max(0.0, 1 - strictness * trace / mean), own.flatten()
            away = basis @ (basis.T @ flat)
            expected.append((flat - (1 - relaxed) * away).view(own.shape))
        assert near(used(step), expected, 1e-7)


def test_directions_are_the_fewest_that_hold_the_energy() -> None:
    rows = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0]))
    for energy, count in ((0.6, 1), (9 / 14, 1), (0.7, 2), (1.0, 3)):
        basis, trace = leading_directions(rows, energy)
        assert basis.shape == (4, count)
        assert trace == pytest.approx(14)
    assert leading_directions(torch.zeros(2, 3), 0.9)[0].shape == (3, 0)


def test_a_fall_begins_a_repair_and_without_old_examples_it_is_said() -> None:
    def run(replay: bool) -> tuple[Run, float]:
        given = [(OLD, ANSWERS)] if replay else None
        guard = guards.SafeAnchor(replay=given, loss=old_loss, repair_steps=30)
        found = Run(guard, rate=0.2)
        found.monitor = monitor_of(behaviors(), probe_every=2)
        found.go(lessons(40))
        with torch.no_grad():
            return found, float(old_loss(found.model, (OLD, ANSWERS)))

    (mended, kept), (plain, lost) = run(True), run(False)
    assert kept < 0.5 * lost
    said = [action.detail for action in mended.monitor.actions]
    begun = [action.step for action in mended.monitor.actions if "begins a repair" in action.detail]
    assert begun
    repaired = [a.step for a in mended.monitor.actions if "added old examples" in a.detail]
    assert repaired[0] == begun[0] + 1
    assert not any("begins a repair" in detail for detail in said[: begun[0]])
    told = [action.detail for action in plain.monitor.actions if "no repair" in action.detail]
    for name in ("first", "second"):
        assert sum(f"{name} (" in detail for detail in told) == 1
    assert all("give replay=" in detail for detail in told)


def test_a_repair_names_the_behavior_whose_old_examples_are_not_finite() -> None:
    class Partly(guards.SelfDistillationBuffer):
        def _distance(self, outputs: Tensor, targets: Tensor, part: Behavior) -> Tensor:
            found = super()._distance(outputs, targets, part)
            if part.name == "second":  # a finite value whose gradient is not finite
                return found + 0 * (outputs.sum() * 0).sqrt()
            return found

    buffer = Partly(replayable(), batch_size=8)
    run = Run(guards.SafeAnchor(replay=buffer, repair_steps=4), rate=0.2)
    run.monitor = monitor_of(behaviors(), probe_every=2)
    with pytest.warns(UserWarning, match="the loss on old examples of 'second' is not finite"):
        run.go(lessons(20))
    details = [a.detail for a in run.monitor.actions if a.moment == "gradients"]
    left_out = ["left out, because not finite: second" in detail for detail in details]
    assert left_out == ["added old examples" in detail for detail in details]
    assert any(left_out) and not all(left_out)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: guards.SafeAnchor(energy=0), "energy must lie in"),
        (lambda: guards.SafeAnchor(tolerance=1), "tolerance in"),
        (lambda: guards.SafeAnchor(of="logits"), "choose 'loss' or 'margin'"),
        (lambda: guards.SafeAnchor(replay=[]), "at least one batch"),
        (lambda: guards.SafeAnchor(replay=[OLD]), "give loss="),
    ],
)
def test_what_cannot_work_is_refused_before_training(make, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=says):
        Run(make()).go(lessons(1))
