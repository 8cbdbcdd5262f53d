"""What a guard says that it reads of a step: it works the same without anything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from guards.cases import ANSWERS, CASES, OLD, Run, lessons, old_loss
from riprap import guards
from riprap.detectors import BehaviorHistory
from riprap.guards import Guard, GuardView, Proposal

READ_UPDATES = {"update_projection", "si", "freeze", "ema"}
READ_INTERFERENCE = {"pcgrad", "upgrad"}
ADAPTIVE = {"adaptive_replay", "auto_guard", "auto_guard_of_buffer"}
STEPS = 8
every = pytest.mark.parametrize("name", CASES)


def blinded(guard: Guard) -> Guard:
    """Hide the gradient or update from each simple guard inside that does not read it."""

    def without(hook: Callable[[GuardView], Proposal | None]) -> Any:
        return lambda view: hook(replace(view, vector=[], before=[]))

    for leaf in guard.flatten():
        read = {"on_gradients": leaf.reads_gradients, "on_update": leaf.reads_updates}
        for hook in [hook for hook, reads in read.items() if not reads]:
            setattr(leaf, hook, without(getattr(leaf, hook)))
    return guard


@every
def test_a_guard_works_without_what_it_does_not_read(name: str) -> None:
    whole, blind = Run(CASES[name]()).go(lessons(STEPS)), Run(blinded(CASES[name]()))
    blind.go(lessons(STEPS))
    assert all(map(torch.equal, whole.weights(), blind.weights()))


@every
def test_only_guards_that_use_updates_read_them(name: str) -> None:
    leaves = list(CASES[name]().flatten())
    for leaf in leaves:
        assert leaf.reads_updates == (leaf.name in READ_UPDATES)
        assert leaf.reads_gradients == (leaf.name not in {"update_projection", "ema", "rollback"})
    assert CASES[name]().reads_updates == any(leaf.reads_updates for leaf in leaves)


@every
def test_only_some_guards_ask_for_interference_at_each_step(name: str) -> None:
    assert CASES[name]().reads_interference == (name in READ_INTERFERENCE)


@pytest.mark.parametrize("name", sorted(CASES.keys() - READ_INTERFERENCE - ADAPTIVE))
def test_a_guard_that_asks_for_no_interference_works_without_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Run(CASES[name]()).go(lessons(STEPS)).weights()
    monkeypatch.setattr(BehaviorHistory, "interference_since_last_probe", lambda _self: 0.0)
    assert all(map(torch.equal, plain, Run(CASES[name]()).go(lessons(STEPS)).weights()))


def test_adaptive_replay_asks_for_interference_while_it_replays() -> None:
    """Not while it is idle: an idle guard costs nothing."""
    guard = guards.AutoGuard(replay=guards.Replay([(OLD, ANSWERS)], loss=old_loss))
    run, asked = Run(guard), []
    with run.monitor.watch(run.model, run.optimizer, guard=guard):
        for ids, targets in [(OLD, ANSWERS)] * 5 + lessons(60):
            run.step(ids, targets)
            asked.append(guard.reads_interference == bool(guard.replay.awake))
    assert all(asked)
    assert len(asked) == 65
    acted = [action.step for action in run.monitor.actions if action.applied]
    assert acted
    assert acted[0] > 5


def test_a_guard_of_a_user_reads_what_it_overrides() -> None:
    @dataclass
    class Mine(guards.Clip):
        def on_update(self, view: GuardView) -> Proposal | None:
            return None

    assert Mine(0.1).reads_updates
    assert Mine(0.1).reads_gradients
    assert not guards.Clip(0.1).reads_updates
    assert guards.OnAlert(Mine(0.1)).reads_updates
    assert not guards.Chain(guards.Clip(0.1), guards.L2SP(0.5)).reads_updates
