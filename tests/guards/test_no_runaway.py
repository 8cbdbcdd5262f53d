"""A margin has no maximum: no guard that reads margins raises it, or the logits, without end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from guards.cases import ANSWERS, OLD, Run, lessons
from riprap import guards
from riprap.guards import Guard
from riprap.guards.projection._gradient_surgery import GradientSurgery

SURGERIES: dict[str, Callable[..., GradientSurgery]] = {
    "agem": guards.AGEM,
    "gem": guards.GEM,
    "gem_with_strength": partial(guards.GEM, strength=0.5),
    "pcgrad": guards.PCGrad,
    "upgrad": guards.UPGrad,
    "update_projection": guards.UpdateProjection,
}
OF_MARGINS: dict[str, Callable[[], Guard]] = {
    **SURGERIES,
    "gem_not_normalized": partial(guards.GEM, strength=0.5, normalize=False),
    "pcgrad_not_normalized": partial(guards.PCGrad, normalize=False),
    "upgrad_not_normalized": partial(guards.UPGrad, normalize=False),
    "pcgrad_of_rescaled_losses": partial(guards.PCGrad, of="loss", refresh=1),
    "upgrad_of_rescaled_losses": partial(guards.UPGrad, of="loss", refresh=1),
    "ogd": partial(guards.OGD, directions=8),
    "two_sided_gpm": partial(guards.TwoSidedGPM, energy=0.7),
    "ewc_of_margins": partial(guards.EWC, of="margin", strength=0.1),
}
STEPS = 80


def largest_logit(run: Run) -> float:
    with torch.no_grad():
        return float(run.model(OLD)[:, -1].abs().max())


def old_accuracy(run: Run) -> float:
    with torch.no_grad():
        return float((run.model(OLD)[:, -1].argmax(-1) == ANSWERS).float().mean())


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [*((name, "sgd") for name in OF_MARGINS), ("pcgrad", "adam"), ("upgrad", "adam")],
)
def test_margins_and_logits_stay_where_they_were(name: str, optimizer: str) -> None:
    """The lessons conflict with the old answers for as long as they last."""
    plain, run = Run(None), Run(OF_MARGINS[name]())
    for one in (plain, run):
        if optimizer == "adam":
            one.optimizer = torch.optim.Adam(one.model.parameters(), lr=2e-3)
        one.go(lessons(4) * (STEPS // 4))
    limit = 3 * max(largest_logit(plain), largest_logit(Run(None)))
    assert largest_logit(run) <= limit
    for history in run.monitor.behavior_histories.values():
        start = history.margins[0].mean()
        assert max(margins.mean() for margins in history.margins) <= 1.5 * start
    assert old_accuracy(run) >= old_accuracy(plain)


def gradient_norm(run: Run) -> float:
    parts = [p.grad.double().flatten() for p in run.model.parameters() if p.grad is not None]
    return float(torch.cat(parts).norm())


@pytest.mark.parametrize("make", OF_MARGINS.values(), ids=OF_MARGINS.keys())
def test_no_step_is_longer_than_the_tasks_own(make) -> None:  # type: ignore[no-untyped-def]
    run = Run(make())
    if run.guard is not None and run.guard.may_increase_norm:
        assert run.guard.name == "ewc"  # a penalty, added as its paper says
        return
    before, after = [], []
    run.optimizer.register_step_pre_hook(lambda *_: before.append(gradient_norm(run)))
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        run.optimizer.register_step_pre_hook(lambda *_: after.append(gradient_norm(run)))
        for ids, targets in lessons(30):
            run.step(ids, targets)
    assert any(action.applied for action in run.monitor.actions)
    assert len(before) == len(after) == 30
    assert (np.array(after) <= np.array(before) * (1 + 1e-5)).all()


@pytest.mark.parametrize("make", [guards.PCGrad, guards.UPGrad, partial(guards.GEM, strength=0.5)])
def test_a_margin_that_is_not_below_its_start_is_left_alone(make) -> None:  # type: ignore[no-untyped-def]
    """Only the second behavior has lost margin: the step must not pull at the first."""
    run, alone = Run(make()), Run(make(["second"]))
    for one in (run, alone):
        with one.monitor.watch(one.model, one.optimizer, guard=one.guard):
            one.step(*lessons(1)[0])
            for name, history in one.monitor.behavior_histories.items():
                history.interference.clear()
                history.margins[0] = history.margins[-1] + (1.0 if name == "second" else 0.0)
                history.last_probe_step = 1
            one.step(*lessons(2)[1])
    first, last = run.monitor.actions
    assert first.detail == "nothing to do: no protected margin is below its start"
    assert set(last.before) == {"second"}
    assert last.applied
    assert all(map(torch.equal, run.weights(), alone.weights()))


def test_the_papers_rules_read_fresh_losses_and_have_no_limit() -> None:
    for kind in (guards.GEM, guards.PCGrad, guards.UPGrad):
        paper, own = kind(of="loss", normalize=False), kind()
        assert (paper.refresh, own.refresh) == (1, 20)
        assert kind(of="loss", normalize=False, refresh=5).refresh == 5
        assert paper.may_increase_norm
        assert not own.may_increase_norm
    run = Run(guards.PCGrad(of="loss", normalize=False))
    ages = []
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        for at, (ids, targets) in enumerate(lessons(8)):
            ages.append(at - run.monitor._session.probe_runner.protected_gradients.step)  # type: ignore[union-attr]
            run.step(ids, targets)
    assert ages == [0] * 8
    details = [action.detail for action in run.monitor.actions]
    assert not any("below its start" in detail for detail in details)


def test_the_detail_tells_how_much_of_a_conflict_was_removed() -> None:
    run = Run(guards.GEM(["first"], strength=0.0, ridge=0.0, refresh=1)).go(lessons(3))
    applied = [action for action in run.monitor.actions if action.applied]
    assert {a.detail for a in applied} == {"removed 100% of the gradient's component against first"}
    ridged = Run(guards.GEM(["first"], ridge=1.0, refresh=1)).go(lessons(3))
    action = next(action for action in ridged.monitor.actions if action.applied)
    assert action.detail == "removed 50% of the gradient's component against first"
    both = Run(guards.UpdateProjection(refresh=1)).go(lessons(6))
    assert any(
        a.detail == "removed 100% of the update's component against first and 100% of that "
        "against second"
        for a in both.monitor.actions
    )
