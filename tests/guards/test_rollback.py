"""Rollback: the last healthy state is restored, and training continues at a lower rate."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guards.cases import Run, behaviors, lessons, monitor_of
from riprap import AlertPolicy, Behavior, Monitor, guards, signals
from riprap.errors import ConfigError
from riprap.types import Action

quiet = pytest.mark.filterwarnings("ignore:riprap. guard rollback")
pytestmark = quiet
RATE, STEPS = 0.3, 20


class RollbackLog:
    """Weights after each step, when training was left to itself, and the batches it was given."""

    def __init__(self, guard: guards.Guard | None, rate: float = RATE, adam: bool = False) -> None:
        self.run = Run(guard, rate=rate)
        if adam:
            self.run.optimizer = torch.optim.AdamW(self.run.model.parameters(), lr=rate)
        self.weights: list[list[torch.Tensor]] = []
        self.states: list[Any] = []

    def go(self, steps: int = STEPS) -> RollbackLog:
        run = self.run
        with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
            self._keep()
            for ids, targets in lessons(steps):
                run.step(ids, targets)
                self._keep()
        return self

    def _keep(self) -> None:
        self.weights.append(self.run.weights())
        self.states.append(copy.deepcopy(self.run.optimizer.state_dict()))

    @property
    def backs(self) -> list[Action]:
        return [action for action in self.run.monitor.actions if action.applied]


def to_step(action: Action) -> int:
    return int(action.detail.split("the state of step ")[1].split(";")[0])


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adamw"])
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "files"])
def test_the_state_that_comes_back_is_that_of_the_healthy_step(
    adam: bool, on_disk: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "ring" if on_disk else None
    seen = RollbackLog(
        guards.Rollback(every=3, checkpoint_dir=folder, keep_learning=False),
        0.05 if adam else RATE,
        adam,
    ).go()
    assert len(seen.backs) >= 2
    for action in seen.backs:
        back, now = to_step(action), action.step
        assert back < now
        assert same(seen.weights[now], seen.weights[back])
        then, later = seen.states[back], seen.states[now]
        assert same(then["state"], later["state"])  # moments, and how many steps they are of
        if back:
            assert then["state"]


def test_it_goes_on_with_later_data_and_less_haste() -> None:
    """The step after a rollback is the one that this batch and half the rate make from there."""
    seen = RollbackLog(guards.Rollback(every=3, max_rollbacks=1, keep_learning=False)).go(10)
    action = seen.backs[0]
    assert action.before == {"learning_rate": pytest.approx(RATE)}
    assert action.after == {"learning_rate": pytest.approx(RATE / 2)}
    again = Run(None, rate=RATE / 2)
    with torch.no_grad():
        for parameter, kept in zip(
            again.model.parameters(), seen.weights[to_step(action)], strict=True
        ):
            parameter.copy_(kept)
    again.optimizer.load_state_dict(seen.states[to_step(action)])
    again.optimizer.param_groups[0]["lr"] = RATE / 2
    again.step(*lessons(10)[action.step])  # batches count from 0: this is the one after that step
    assert same(again.weights(), seen.weights[action.step + 1])


def test_what_was_broken_is_healthy_in_the_end() -> None:
    plain, guarded = (
        RollbackLog(None).go(40),
        RollbackLog(guards.Rollback(every=3, max_rollbacks=9, keep_learning=False)).go(40),
    )
    plain_scores, scores = (
        {n: (t.margins[-1] > 0).mean() for n, t in seen.run.monitor.behavior_histories.items()}
        for seen in (plain, guarded)
    )
    assert max(plain_scores.values()) < 0.5
    assert min(scores.values()) >= 0.9


def test_a_rollback_is_no_update_and_refreshes_the_gradients() -> None:
    """The first steps after it are predicted as well as before: r_b tells the change of a step."""
    seen = RollbackLog(guards.Rollback(every=3, max_rollbacks=1, keep_learning=False))
    seen.run.monitor = monitor_of(signals=signals.per_step())
    at = seen.go(12).backs[0].step
    history = seen.run.monitor.history()
    margins = history[(history.signal == "margin") & (history.behavior == "first")]
    assert margins.step.tolist().count(at) == 2  # before going back, and after
    said = history[(history.signal == "interference") & (history.behavior == "first")]
    assert said.step.tolist() == list(range(1, 13))
    norms = history[history.signal == "norm_update"].set_index("step").value
    moved = torch.cat(
        [(a - b).flatten() for a, b in zip(seen.weights[at + 1], seen.weights[at], strict=True)]
    )
    assert norms[at + 1] == pytest.approx(float(moved.norm()), rel=1e-5)
    one = behaviors()[0]
    model = Run(None).model
    with torch.no_grad():
        for parameter, kept in zip(model.parameters(), seen.weights[at], strict=True):
            parameter.copy_(kept)
    own = torch.autograd.grad(one.margins(model, one.probes).mean(), list(model.parameters()))
    delta = zip(own, seen.weights[at + 1], seen.weights[at], strict=True)
    expected = sum(float((h.double() * (a - b).double()).sum()) for h, a, b in delta)
    found = said.set_index("step").value[at + 1]
    assert found == pytest.approx(expected, rel=1e-3)


def test_after_going_back_it_is_judged_afresh_but_the_break_stays_known() -> None:
    seen = RollbackLog(guards.Rollback(every=3, max_rollbacks=5, keep_learning=False)).go(30)
    monitor, first = seen.run.monitor, seen.backs[0]
    assert monitor.broken()["first"] == 3 == first.step
    alerts = [(a.step, a.behavior) for a in monitor.alerts if str(a.level) == "critical"]
    assert len({step for step, _ in alerts}) >= 2  # one that stood on would not be raised again


def test_checkpoints_are_of_measured_health(tmp_path: Path) -> None:
    folder = tmp_path / "ring"
    seen = RollbackLog(
        guards.Rollback(
            every=2, max_checkpoints=3, checkpoint_dir=folder, max_rollbacks=9, keep_learning=False
        )
    ).go(30)
    scores = seen.run.monitor.history().query("signal == 'score'")
    steps = [int(file.stem.split("-")[1]) for file in folder.iterdir()]
    assert len(steps) == 3
    for step in [*steps, *map(to_step, seen.backs)]:
        at = scores[scores.step == step].groupby("behavior").value.last()
        assert (at >= 0.9).all()


def test_the_generators_come_back_unless_that_is_not_wanted() -> None:
    def drawn() -> list[Any]:
        return [torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()]

    for kept in (True, False):
        run = Run(guards.Rollback(every=3, restore_rng=kept, keep_learning=False), rate=RATE)
        seen = []
        with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
            seen.append(drawn())
            for ids, targets in lessons(4):
                run.step(ids, targets)
                seen.append(drawn())
                torch.rand(1), np.random.rand(), random.random()
        action = next(action for action in run.monitor.actions if action.applied)
        assert to_step(action) == 0
        assert same(seen[action.step], seen[0]) is kept


def test_it_gives_up_with_a_last_word_and_leaves_a_healthy_state() -> None:
    run = Run(guards.Rollback(every=3, max_rollbacks=1, keep_learning=False), rate=RATE)
    taken = 0
    with (
        pytest.warns(UserWarning, match=r"guard rollback: .* after 1 earlier rollbacks training"),
        run.monitor.watch(run.model, run.optimizer, guard=run.guard),
    ):
        for ids, targets in lessons(40):
            run.step(ids, targets)
            taken += 1
            if run.monitor.should_stop:
                break
    assert taken < 40
    assert run.monitor.should_stop
    assert "training should stop" in run.monitor.stop_reason
    assert sum(action.applied for action in run.monitor.actions) == 2
    for one in behaviors():
        assert (one.margins(run.model, one.probes) > 0).float().mean() >= 0.9


def test_a_loop_that_does_not_stop_is_recorded() -> None:
    seen = RollbackLog(guards.Rollback(every=3, max_rollbacks=0, keep_learning=False)).go(40)
    assert len(seen.backs) == 1
    later = [action for action in seen.run.monitor.actions if not action.applied]
    assert later
    assert all("was asked to stop at step 3" in action.detail for action in later)


def test_a_shadow_leaves_training_alone() -> None:
    plain, shadow = (
        RollbackLog(None).go(),
        RollbackLog(guards.Rollback(every=3, shadow=True, keep_learning=False)).go(),
    )
    assert same(plain.weights, shadow.weights)
    assert same(plain.states, shadow.states)
    said = shadow.run.monitor.actions
    assert said
    assert all(action.detail.startswith("shadow: ") and not action.applied for action in said)
    assert not shadow.run.monitor.should_stop


def test_a_behavior_that_is_not_protected_sets_nothing_off() -> None:
    low = Behavior("low", behaviors()[1].probes, behaviors()[1].margins, floor=0.01)
    run = Run(guards.Rollback([low], every=3, keep_learning=False), rate=0.1)
    run.monitor = Monitor([behaviors()[0], low], policy=run.monitor.policy, probe_every=5)
    run.go(lessons(8))
    assert run.monitor.broken()["first"] is not None
    assert not run.monitor.actions


def test_a_break_at_the_last_probe_evaluation_is_rolled_back() -> None:
    """The probes are visited once more when the watch ends."""
    policy = AlertPolicy.parse({"name": "low", "detectors": [BROKEN]}, "here")
    guard = guards.Rollback(every=1, keep_learning=False)
    run = Run(guard, rate=RATE)
    run.monitor = Monitor(behaviors(), policy=policy, probe_every=50)
    with run.monitor.watch(run.model, run.optimizer, guard=guard):
        schedule = run.monitor._run.schedule
        schedule.next_step = schedule.read_every = 99  # no visit before the end
        for ids, targets in lessons(5):
            run.step(ids, targets)
    assert [action.step for action in run.monitor.actions if action.applied] == [5]
    assert same(run.weights(), Run(None).weights())


BROKEN = {
    "kind": "threshold",
    "signal": "score",
    "side": "below",
    "value": 0.9,
    "level": "critical",
}


def test_a_behavior_that_was_unhealthy_from_the_start_is_ignored() -> None:
    def never(model: Any, probes: Any) -> torch.Tensor:
        return -(1 + model(probes[0])[:, -1, 0] ** 2)

    ill = Behavior("ill", behaviors()[0].probes, never)
    run = Run(guards.Rollback(every=3, keep_learning=False), rate=RATE)
    with pytest.warns(UserWarning, match="'ill' starts below its floor: 0.00 < 0.90"):
        run.monitor = Monitor([*behaviors(), ill], policy=run.monitor.policy, probe_every=5)
        run.go(lessons(6))
    assert any(action.applied for action in run.monitor.actions)
    named = Run(guards.Rollback(["ill"], keep_learning=False))
    named.monitor = Monitor([*behaviors(), ill], policy=run.monitor.policy, probe_every=5)
    with pytest.raises(ConfigError, match="'ill' is under its floor before training"):
        named.go(lessons(1))


def test_by_default_a_behavior_under_its_floor_is_left_out_by_name() -> None:
    def never(model: Any, probes: Any) -> torch.Tensor:
        return -(1 + model(probes[0])[:, -1, 0] ** 2)

    ill = Behavior("ill", behaviors()[0].probes, never)
    run = Run(guards.Rollback(every=1), rate=RATE)
    with pytest.warns(UserWarning, match="guard rollback: 'ill' is under its floor before"):
        run.monitor = Monitor([ill], policy=run.monitor.policy, probe_every=5)
        run.go(lessons(6))
    assert not run.monitor.actions
    assert same(run.weights(), Run(None, rate=RATE).go(lessons(6)).weights())


def test_by_default_learning_goes_on_where_only_the_start_was_healthy() -> None:
    plain = RollbackLog(None).go(40)
    seen = RollbackLog(guards.Rollback(every=3)).go(40)
    assert not seen.backs
    assert not seen.run.monitor.should_stop
    assert "no later state than the start was healthy" in seen.run.monitor.actions[0].detail
    assert same(plain.weights, seen.weights)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"level": "red"}, "choose watch, warning, critical"),
        ({"every": 0}, "every=0; it must be 1 or more"),
        ({"max_checkpoints": 0}, "max_checkpoints=0; it must be 1 or more"),
        ({"lr_factor": 0.0}, r"lr_factor must lie in \(0, 1\]"),
        ({"max_rollbacks": -1}, "max_rollbacks must be 0 or more"),
    ],
)
def test_invalid_arguments_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        guards.Rollback(**options)


def test_a_schedule_that_is_not_given_is_refused() -> None:
    run = Run(guards.Rollback())
    torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.9)
    with pytest.raises(ConfigError, match=r"give Rollback\(lr_scheduler=\.\.\.\)"):
        run.go(lessons(1))
