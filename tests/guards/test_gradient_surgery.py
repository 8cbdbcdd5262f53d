"""Gradient surgery: the decision on the Gramian, and its effect on the gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guards.cases import Run, behaviors, lessons
from riprap import guards
from riprap.errors import ConfigError
from riprap.guards.projection._gradient_surgery import ConflictStats, GradientSurgery

SURGERIES: dict[str, Callable[..., GradientSurgery]] = {
    "agem": guards.AGEM,
    "gem": partial(guards.GEM, ridge=0.0),  # a ridge leaves a part; see test_gem.py
    "gem_with_strength": partial(guards.GEM, strength=0.5, ridge=0.0),
    "pcgrad": guards.PCGrad,
    "upgrad": guards.UPGrad,
    "update_projection": guards.UpdateProjection,
}
NO_CONFLICT = "nothing to do: the step goes against no protected behavior"
ALL_INTACT = "nothing to do: no protected margin is below its start"
each = pytest.mark.parametrize("surgery", SURGERIES.values(), ids=SURGERIES.keys())
OF_GRADIENTS = {name: made for name, made in SURGERIES.items() if not made().acts_on_update}


def vectors(seed: int, n: int, size: int = 30) -> tuple[np.ndarray, np.ndarray]:
    made = np.random.default_rng(seed)
    return made.normal(size=size), made.normal(size=(n, size))


def conflict_of(gradient: np.ndarray, protected: np.ndarray) -> ConflictStats:
    return ConflictStats(protected @ gradient, protected @ protected.T, float(gradient @ gradient))


def operated(surgery: GradientSurgery, gradient: np.ndarray, protected: np.ndarray) -> np.ndarray:
    scale, weights = surgery.decide(conflict_of(gradient, protected))
    result: np.ndarray = scale * gradient + weights @ protected
    return result


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_agem_is_the_projection_of_the_paper(seed: int, n: int) -> None:
    gradient, protected = vectors(seed, n)
    mean = protected.mean(0)
    expected = gradient
    if gradient @ mean < 0:
        expected = gradient - (gradient @ mean) / (mean @ mean) * mean
    np.testing.assert_allclose(operated(guards.AGEM(), gradient, protected), expected, atol=1e-10)


@each
@given(seed=st.integers(0, 10_000))
def test_one_conflict_is_removed(surgery: Callable[..., GradientSurgery], seed: int) -> None:
    made, (gradient, protected) = surgery(), vectors(seed, 1)
    if gradient @ protected[0] < 0:
        left = operated(made, gradient, protected)
        assert left @ protected[0] >= -1e-9
        assert made.may_increase_norm or left @ left <= gradient @ gradient * (1 + 1e-9)


@each
def test_agreement_passes_bit_for_bit(surgery: Callable[..., GradientSurgery]) -> None:
    """The task is the protected behaviors' own loss: nothing is in conflict."""
    from guards.cases import ANSWERS, OLD

    plain = Run(None).go([(OLD, ANSWERS)] * 3)
    guarded = Run(surgery(of="loss", refresh=1)).go([(OLD, ANSWERS)] * 3)
    assert all(map(torch.equal, plain.weights(), guarded.weights()))
    assert {action.detail for action in guarded.monitor.actions} <= {NO_CONFLICT, ALL_INTACT}


@pytest.mark.parametrize("surgery", OF_GRADIENTS.values(), ids=OF_GRADIENTS.keys())
def test_the_resulting_step_agrees_with_protected_gradients(
    surgery: Callable[..., GradientSurgery],
) -> None:
    """Measured on the gradient that the optimizer really gets, in float64."""
    one = behaviors()[:1]
    run = Run(surgery(["first"], refresh=1))
    seen = []

    def check(*_: object) -> None:
        margins = one[0].margins(run.model, one[0].probes).mean()
        own = torch.autograd.grad(margins, list(run.model.parameters()))
        pairs = zip(own, run.model.parameters(), strict=True)
        seen.append(-sum(float((h.double() * p.grad.double()).sum()) for h, p in pairs))  # type: ignore[union-attr]

    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        run.optimizer.register_step_pre_hook(check)
        for ids, targets in lessons(6):
            run.step(ids, targets)
    applied = [action for action in run.monitor.actions if action.applied]
    assert applied
    for action in applied:
        measured = seen[action.step - 1]
        size = abs(action.before["first"])
        assert action.before["first"] < 0
        assert measured >= -1e-4 * size
        assert abs(action.after["first"] - measured) <= 1e-3 * size


def test_what_cannot_be_protected_is_refused_before_the_first_step() -> None:
    cases = [
        (guards.AGEM(["other"]), "'other' is not monitored; the monitor has first, second"),
        (guards.AGEM([]), "protects nothing"),
    ]
    for guard, text in cases:
        run = Run(guard)
        with pytest.raises(ConfigError, match=text):
            run.go(lessons(1))
    with pytest.raises(ConfigError, match="choose 'margin' or 'loss'"):
        guards.AGEM(of="both")
