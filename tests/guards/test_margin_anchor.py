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
    for found, raw in zip(guard.fisher, fisher, strict=True):
        torch.testing.assert_close(found, raw / abs(size).mean() ** 2)


def test_a_stronger_anchor_keeps_margins_nearer_to_where_they_were() -> None:
    drops = []
    for strength in (None, 1.0, 1000.0):
        guard = None if strength is None else guards.MarginAnchor(strength=strength)
        run = Run(guard).go(lessons(40))
        history = run.monitor.behavior_histories["first"]
        drops.append(float(history.margins[0].mean() - history.margins[-1].mean()))
    assert drops[0] > drops[1] > drops[2]


def test_parameters_that_join_stay_free_and_a_second_watch_begins_anew() -> None:
    guard = guards.MarginAnchor()
    run = Run(guard)
    blocks = [p for n, p in run.model.named_parameters() if n.startswith("blocks.1")]
    for parameter in blocks:
        parameter.requires_grad_(False)
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        run.step(*lessons(1)[0])
        few = len(guard.fisher)
        for parameter in blocks:
            parameter.requires_grad_(True)
        run.step(*lessons(2)[1])
        assert len(guard.fisher) == len(guard.anchor) == few + len(blocks)
        assert sum(not bool(part.any()) for part in guard.fisher) >= len(blocks)
    again = Run(guard)
    with again.monitor.watch(again.model, again.optimizer, guard=guard):
        assert not guard.fisher
        assert not guard.anchor
        again.step(*lessons(1)[0])
    assert len(guard.anchor) == len(list(again.model.parameters()))


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
    assert [action.applied for action in run.monitor.actions] == [False] * 3
