"""MarginAnchor: what it holds, from when on, and how hard it pulls."""

from __future__ import annotations

import warnings

import torch

from guards.cases import Run, lessons
from riprap import Behavior, Monitor, guards
from riprap.evaluation import fisher_diagonal


def test_it_holds_the_weights_of_the_step_at_which_it_first_acts() -> None:
    """F and θ* against a reference; before that step nothing is stored."""
    guard = guards.MarginAnchor(["first"], strength=3.0, max_pull=None)
    run = Run(guards.Scheduled(guard, first=4))
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        for ids, targets in lessons(3):
            run.step(ids, targets)
        assert not guard.fisher
        assert not guard.anchor
        start = [p.detach().clone() for p in run.model.parameters()]
        behavior = run.monitor.behaviors[0]
        fisher = fisher_diagonal(behavior, run.model, list(run.model.parameters()), of="margin")
        size = run.monitor.behavior_histories["first"].margins[0]
        run.step(*lessons(4)[3])
    assert all(map(torch.equal, guard.anchor, start))
    assert fisher is not None
    limit = 0.5 / run.optimizer.param_groups[0]["lr"] / guard.strength
    for found, raw in zip(guard.fisher, fisher, strict=True):
        torch.testing.assert_close(found, (raw / abs(size).mean() ** 2).clamp(max=limit))


def test_a_stronger_anchor_keeps_margins_nearer_to_where_they_were() -> None:
    drops = []
    for strength in (None, 1.0, 1000.0):
        guard = None if strength is None else guards.MarginAnchor(strength=strength)
        run = Run(guard).go(lessons(40))
        history = run.monitor.behavior_histories["first"]
        drops.append(float(history.margins[0].mean() - history.margins[-1].mean()))
    assert drops[0] > drops[1] > drops[2]


def test_plain_descent_does_not_go_beyond_the_anchor() -> None:
    """However strong: one step of the pull alone goes at most half of the way back."""
    guard = guards.MarginAnchor(strength=1e9, max_pull=None)
    run = Run(guard)
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        run.step(*lessons(1)[0])
        rate = run.optimizer.param_groups[0]["lr"]
        largest = max(float(part.max()) for part in guard.fisher)
    assert 0 < rate * guard.strength * largest <= 0.5 + 1e-6


def test_margins_without_trained_parameters_are_said_and_training_goes_on() -> None:
    run = Run(guards.MarginAnchor())
    constant = Behavior(
        "constant", torch.zeros(4), lambda model, probes: torch.ones(4) + 0 * probes
    )
    run.monitor = Monitor([constant], policy=run.monitor.policy)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.go(lessons(3))
    said = [str(one.message) for one in caught if "weights are not anchored" in str(one.message)]
    assert len(said) == 1
    assert not any(action.applied for action in run.monitor.actions)
