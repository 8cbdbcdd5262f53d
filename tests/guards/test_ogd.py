"""OGD: the resulting gradient is orthogonal to the gradients stored at the start."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guards.cases import Run, behaviors, lessons, start
from riprap import Behavior, guards
from riprap.errors import ConfigError
from riprap.guards.projection._ogd import orthonormal_basis


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.double().flatten() for part in parts])


def directions(model: torch.nn.Module, behavior: Behavior) -> Tensor:
    """∇m_i of every probe, one backward pass each, shape (n, parameters)."""
    model = model.double()
    rows = []
    for at in range(len(behavior.probes[0])):
        margin = behavior.margins(model, behavior.probes)[at]  # type: ignore[index]
        rows.append(flat(list(torch.autograd.grad(margin, list(model.parameters())))))
    return torch.stack(rows)


def test_what_the_optimizer_gets_is_orthogonal_to_what_was_stored() -> None:
    """One behavior's 12 gradients of θ₀, at steps that have long left θ₀."""
    one = behaviors()[0]
    stored = directions(start(), one)
    run, found = Run(guards.OGD(["first"], directions=12)), []

    def check(*_: object) -> None:
        gradient = flat([p.grad for p in run.model.parameters()])  # type: ignore[misc]
        assert gradient.norm() > 0.01
        found.append(stored @ gradient / stored.norm(dim=1) / gradient.norm())

    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        run.optimizer.register_step_pre_hook(check)
        for ids, targets in lessons(5):
            run.step(ids, targets)
    assert float(torch.stack(found).abs().max()) < 1e-4
    taken = [action.before["along"] / action.before["norm"] for action in run.monitor.actions]
    assert min(taken) > 0.01  # there was something to take out


def test_it_is_the_projection_of_least_squares() -> None:
    one = behaviors()[0]
    stored = directions(start(), one)
    plain, run = Run(None, rate=1.0), Run(guards.OGD(["first"], directions=12), rate=1.0)
    for each in (plain, run):
        each.go(lessons(1))
    before = flat(Run(None).weights())
    gradient = before - flat(plain.weights())
    inside = torch.linalg.lstsq(stored.T, gradient[:, None]).solution[:, 0] @ stored
    left = before - flat(run.weights())
    torch.testing.assert_close(left, gradient - inside, atol=1e-5, rtol=1e-4)


def test_dependent_gradients_are_one_direction() -> None:
    made = torch.Generator().manual_seed(0)
    like = [torch.zeros(3, 4), torch.zeros(5)]
    one, two = ([torch.randn(part.shape, generator=made) for part in like] for _ in range(2))
    mixed = [a - 3 * b for a, b in zip(one, two, strict=True)]
    zero = [torch.zeros_like(part) for part in like]
    basis = torch.cat(orthonormal_basis([one, two, mixed, zero], like), 1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(2), atol=1e-6, rtol=0)
    for row in (one, mixed):
        own = flat(row).float()
        torch.testing.assert_close(basis.T @ (basis @ own), own, atol=1e-5, rtol=1e-5)


def test_directions_are_shared_out() -> None:
    run = Run(guards.OGD(directions=7)).go(lessons(1))
    assert run.guard.basis[0].shape[0] == 6  # type: ignore[union-attr]
    assert run.monitor.actions[0].detail.endswith("its part along 6 protected directions")


def test_what_cannot_be_stored_is_refused_before_the_first_step() -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        guards.OGD(directions=0)
    detached = behaviors()
    attached = detached[1]
    detached[1] = Behavior(
        attached.name, attached.probes, lambda m, probes: attached.margins(m, probes).detach()
    )
    from guards.cases import monitor_of

    run = Run(guards.OGD())
    run.monitor = monitor_of(detached)
    with pytest.raises(ConfigError, match="'second' has no margins that reach"):
        run.go(lessons(1))
