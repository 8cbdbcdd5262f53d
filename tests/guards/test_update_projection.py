"""UpdateProjection: the constraint holds for the update that was really applied."""

from __future__ import annotations

import pytest
import torch

from guards.cases import Run, behaviors, lessons
from riprap import guards
from riprap.errors import ConfigError

FINE = torch.finfo(torch.float32).eps


def gradients(run: Run) -> list[list[torch.Tensor]]:
    """h_b of every behavior, float64."""
    parameters = list(run.model.parameters())
    means = [one.margins(run.model, one.probes).mean() for one in behaviors()]  # type: ignore[union-attr]
    return [[part.double() for part in torch.autograd.grad(mean, parameters)] for mean in means]


def watched(
    guard: guards.Guard | None, optimizer: type[torch.optim.Optimizer]
) -> list[list[float]]:
    """⟨h_b, Δθ⟩ of every step and behavior, and how large rounding may make it."""
    run = Run(guard)
    run.optimizer = optimizer(run.model.parameters(), lr=0.02)  # type: ignore[call-arg]
    found = []
    with run.monitor.watch(run.model, run.optimizer, guard=guard):
        for ids, targets in lessons(8):
            protected, before = gradients(run), [p.double() for p in run.weights()]
            run.step(ids, targets)
            moved = [p.double() - b for p, b in zip(run.weights(), before, strict=True)]
            for h in protected:
                product = sum(float((a * b).sum()) for a, b in zip(h, moved, strict=True))
                rounded = sum(
                    float((a.abs() * b.abs()).sum()) for a, b in zip(h, before, strict=True)
                )
                found.append([product, FINE * rounded])
    return found


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("tolerance", [0.0, 0.005])
def test_the_applied_update_lowers_no_margin(
    optimizer: type[torch.optim.Optimizer], tolerance: float
) -> None:
    plain = watched(None, optimizer)
    assert sum(product < -2 * max(tolerance, 1e-4) for product, _ in plain) > 4
    left = watched(guards.UpdateProjection(tolerance=tolerance, refresh=1), optimizer)
    for product, rounding in left:
        assert product >= -tolerance - max(rounding, 1e-6)
    if tolerance:
        assert (
            min(product for product, _ in left) < -0.5 * tolerance
        )  # it takes no more than needed


def test_the_gradient_is_unchanged_and_the_update_is_not_longer() -> None:
    run = Run(guards.UpdateProjection(refresh=1))
    plain = Run(None)
    for one in (plain, run):
        one.optimizer = torch.optim.AdamW(one.model.parameters(), lr=0.02)
        one.go(lessons(1))
    pairs = zip(plain.model.parameters(), run.model.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)  # type: ignore[arg-type]
    fresh = Run(None).weights()
    sizes = [
        sum(
            float((a - b).double().square().sum())
            for a, b in zip(one.weights(), fresh, strict=True)
        )
        for one in (plain, run)
    ]
    assert 0 < sizes[1] < sizes[0]


def test_a_tolerance_under_0_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be 0 or more"):
        guards.UpdateProjection(tolerance=-1.0)
