"""Properties of all guards; add a new guard to `cases.CASES` to test it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guards.cases import CASES, Run, lessons, monitor_of, start
from riprap.guards import Guard

STEPS = 8
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(map(torch.equal, one, two))


def near(one: list[Tensor], two: list[Tensor], tolerance: float) -> bool:
    size = max(float(part.abs().max()) for part in two)
    return all(
        float((a - b).abs().max()) <= tolerance * size for a, b in zip(one, two, strict=True)
    )


def shadowed(guard: Guard) -> Guard:
    for leaf in guard.flatten():
        leaf.shadow = True
    return guard


@every
def test_a_guard_changes_training(case) -> None:  # type: ignore[no-untyped-def]
    plain, guarded = Run(None).go(lessons(STEPS)), Run(case()).go(lessons(STEPS))
    assert not equal(plain.weights(), guarded.weights())
    applied = [action for action in guarded.monitor.actions if action.applied]
    assert applied
    assert all(1 <= action.step <= STEPS and action.seconds > 0 for action in applied)


@every
def test_a_shadow_changes_nothing_and_records_its_decisions(case) -> None:  # type: ignore[no-untyped-def]
    plain, shadow = Run(None).go(lessons(STEPS)), Run(shadowed(case())).go(lessons(STEPS))
    assert equal(plain.weights(), shadow.weights())
    said = shadow.monitor.actions
    assert said
    assert not any(action.applied for action in said)
    assert all(action.detail.startswith("shadow: ") for action in said)


@every
def test_accumulated_gradients_are_treated_as_one(case) -> None:  # type: ignore[no-untyped-def]
    whole, parts = Run(case()).go(lessons(STEPS)), Run(case()).go(lessons(STEPS), parts=8)
    assert near(parts.weights(), whole.weights(), 1e-4)


@every
def test_frozen_parameters_stay(case) -> None:  # type: ignore[no-untyped-def]
    model = start()
    frozen = model.blocks[0]
    for parameter in frozen.parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(False)
    before = [p.detach().clone() for p in frozen.parameters()]  # type: ignore[union-attr]
    run = Run(case(), model).go(lessons(STEPS))
    assert equal(before, [p.detach() for p in frozen.parameters()])  # type: ignore[union-attr]
    assert all(p.grad is None for p in frozen.parameters())  # type: ignore[union-attr]
    assert any(action.applied for action in run.monitor.actions)


@every
def test_there_is_always_a_gradient(case) -> None:  # type: ignore[no-untyped-def]
    run = Run(case())
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        for ids, targets in lessons(STEPS):
            run.step(ids, targets)
            assert any(p.grad is not None for p in run.model.parameters())


@every
def test_half_precision_is_near(case) -> None:  # type: ignore[no-untyped-def]
    wide = Run(case()).go(lessons(2))
    narrow = Run(case(), start().bfloat16()).go(lessons(2))
    assert near([part.float() for part in narrow.weights()], wide.weights(), 0.05)


@every
def test_a_resumed_run_ends_with_the_same_weights(case) -> None:  # type: ignore[no-untyped-def]
    whole = Run(case()).go(lessons(STEPS))
    first = Run(case())
    with first.monitor.watch(first.model, first.optimizer, guard=first.guard):
        for ids, targets in lessons(STEPS)[: STEPS // 2]:
            first.step(ids, targets)
        state = first.monitor.state_dict()
        model, optimizer = first.model.state_dict(), first.optimizer.state_dict()
        second = Run(case())
        second.model.load_state_dict(model)
        second.optimizer.load_state_dict(optimizer)
    second.monitor = monitor_of()
    second.monitor.load_state_dict(state)
    second.go(lessons(STEPS)[STEPS // 2 :])
    assert equal(whole.weights(), second.weights())
