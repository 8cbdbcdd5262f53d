"""LwF: the step against the formula, on the loop's own batches, and no hook that stays."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from guards.cases import Run, lessons, monitor_of, old_loss, start
from guards.step_log import as_model, gradient, log_steps, near, used
from riprap import guards
from riprap.errors import ConfigError


def test_the_step_is_that_of_the_formula() -> None:
    seen, _ = log_steps(guards.LwF(strength=0.7), steps=3)
    initial = start().double()
    for step, (ids, _) in zip(seen, lessons(3), strict=True):
        with torch.no_grad():
            then = (initial(ids) / 2).softmax(-1)

        def penalty(own: list[Tensor], ids: Tensor = ids, then: Tensor = then) -> Tensor:
            return -(then * (as_model(own)(ids) / 2).log_softmax(-1)).sum(-1).mean()

        own = gradient(penalty, step.theta)
        assert near(used(step), [a + 0.7 * b for a, b in zip(step.task, own, strict=True)])


def test_the_answers_to_the_new_inputs_change_less() -> None:
    ids = torch.cat([ids for ids, _ in lessons(24)])

    def change(guard: guards.Guard | None) -> float:
        run = Run(guard, rate=0.05).go(lessons(24))
        with torch.no_grad():
            now, then = run.model(ids).log_softmax(-1), start()(ids).log_softmax(-1)
        return float((then.exp() * (then - now)).sum(-1).mean())

    assert change(guards.LwF(strength=4.0)) < change(guards.LwF()) < change(None)


def test_no_hook_stays_and_nothing_is_kept() -> None:
    run = Run(guards.LwF())
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        run.step(*lessons(1)[0])
        run.model(lessons(1)[0][0])
        assert len(run.guard._calls._calls) == 1  # type: ignore[union-attr]
    assert not run.model._forward_pre_hooks
    run.model(lessons(1)[0][0])
    assert not run.guard._calls._calls  # type: ignore[union-attr]


def test_a_copy_of_the_model_has_a_hook_of_its_own() -> None:
    run = Run(guards.LwF())
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        run.model(lessons(1)[0][0])
        twins = [copy.deepcopy(run.model), pickle.loads(pickle.dumps(run.model))]
        for twin in twins:
            twin(lessons(1)[0][0])
        assert len(run.guard._calls._calls) == 1  # type: ignore[union-attr]


def test_passes_without_gradients_and_evaluations_are_not_seen() -> None:
    run = Run(guards.LwF())
    run.monitor = monitor_of(probe_every=1)
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        with torch.no_grad():
            run.model(lessons(1)[0][0])
        for parameter in run.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        run.optimizer.step()
    action = run.monitor.actions[0]
    assert not action.applied
    assert "no pass with gradients" in action.detail


def test_a_temperature_of_0_is_refused() -> None:
    with pytest.raises(ConfigError, match="above 0"):
        guards.LwF(temperature=0)


@pytest.mark.parametrize(
    "wrap", [lambda own: guards.Scheduled(own, first=9), lambda own: guards.OnAlert(own)]
)
def test_batches_are_dropped_at_each_step_while_the_guard_is_inactive(
    wrap: Callable[[guards.Guard], guards.Guard],
) -> None:
    own = guards.LwF()
    run = Run(wrap(own))
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        for ids, targets in lessons(4):
            run.step(ids, targets, parts=2)
            assert not own._calls._calls


def test_batches_of_a_skipped_step_are_dropped() -> None:
    run = Run(guards.LwF())
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1, fused=True)
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        old_loss(run.model, lessons(1)[0]).backward()
        run.monitor.record_skipped_step("an overflow")
        assert not run.guard._calls._calls  # type: ignore[union-attr]
        old_loss(run.model, lessons(1)[0]).backward()
        run.optimizer.found_inf = torch.ones(1)  # type: ignore[attr-defined]
        run.optimizer.step()
        assert not run.guard._calls._calls  # type: ignore[union-attr]


class Failing(guards.Guard):
    """Fails in one of its hooks."""

    name = "failing"

    def __init__(self, hook: str) -> None:
        super().__init__()
        setattr(self, hook, self.fail)

    def fail(self, _: object) -> None:
        raise ConfigError("it fails")


@pytest.mark.parametrize("hook", ["start", "on_probe_evaluation", "end"])
def test_no_hook_stays_when_another_guard_fails(hook: str) -> None:
    for chain in (
        guards.Chain(guards.LwF(), Failing(hook)),
        guards.Chain(Failing(hook), guards.LwF()),
    ):
        run = Run(chain)
        with pytest.raises(ConfigError, match="it fails"):
            run.go(lessons(2))
        assert not run.model._forward_pre_hooks
