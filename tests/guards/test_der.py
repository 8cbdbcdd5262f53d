"""DER++: the step against the formula, logits stored once, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from guards.cases import ANSWERS, OLD, Run, halves, last, lessons
from guards.step_log import as_model, gradient, log_steps, near, used
from riprap import guards
from riprap.errors import ConfigError


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.7), (0.5, 0.0), (0.0, 1.0)])
def test_the_step_is_that_of_the_formula(alpha: float, beta: float) -> None:
    guard = guards.DERpp(halves(), alpha=alpha, beta=beta, strength=2.0)
    seen, _ = log_steps(guard, steps=4)
    stored = guard.references
    for at, step in enumerate(seen):
        ids, answers = halves()[at % 2]

        def penalty(
            own: list[Tensor], ids: Tensor = ids, answers: Tensor = answers, at: int = at
        ) -> Tensor:
            logits = last(as_model(own), ids)  # type: ignore[arg-type]
            square = (logits - stored[at % 2]).square().mean()
            return alpha * square + beta * functional.cross_entropy(logits, answers)

        own = gradient(penalty, step.theta)
        assert near(used(step), [a + 2.0 * b for a, b in zip(step.task, own, strict=True)])


def test_labels_of_tokens_are_those_that_a_position_predicts() -> None:
    labels = OLD.clone()
    labels[:, :3] = -100
    guard = guards.DERpp([{"tokens": OLD, "labels": labels}], alpha=0.0, beta=1.0)
    run = Run(guard)
    with torch.no_grad():
        expected = functional.cross_entropy(
            run.model(OLD)[:, 2:4].flatten(0, 1), OLD[:, 3:].flatten()
        )
    run.go(lessons(1))
    assert run.monitor.actions[0].before["penalty"] == pytest.approx(float(expected), rel=1e-5)


def test_logits_are_stored_when_a_batch_is_added() -> None:
    guard = guards.DERpp(halves()[:1])
    first = Run(guard).go(lessons(4))
    stored = guard.references[0].clone()
    guard.add(halves()[1:])
    second = Run(guard, first.model)
    with torch.no_grad():
        now = [last(first.model, ids) for ids, _ in halves()]
    second.go(lessons(1))
    assert torch.equal(guard.references[0], stored)
    assert not torch.allclose(guard.references[0], now[0])
    torch.testing.assert_close(guard.references[1], now[1])


def test_it_keeps_what_the_task_alone_would_lose() -> None:
    def lost(guard: guards.Guard | None) -> float:
        run = Run(guard, rate=0.05).go(lessons(24))
        with torch.no_grad():
            return float(functional.cross_entropy(last(run.model, OLD), ANSWERS))

    assert lost(guards.DERpp([(OLD, ANSWERS)])) < 0.5 * lost(None)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: guards.DERpp([]), "at least one batch"),
        (lambda: guards.DERpp(halves(), alpha=-1), "both must be 0 or more"),
        (lambda: guards.DERpp(halves(), alpha=0, beta=0), "one above 0"),
        (lambda: guards.DERpp([OLD]), "without labels"),
        (lambda: guards.DERpp([(OLD, ANSWERS[:5])]), "one label for each row"),
        (lambda: guards.DERpp([(OLD, torch.full_like(OLD, -100))]), "no label to learn"),
    ],
)
def test_what_cannot_work_is_refused_before_training(make, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=says):
        Run(make()).go(lessons(1))
