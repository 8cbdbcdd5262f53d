"""AutoGuard: idle, then replay as needed, then projection; a rollback if asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional

from guards.cases import ANSWERS, OLD, Run, behaviors, lessons, old_loss
from guards.test_replay import BATCHES, Words, pool
from riprap import Alert, AlertPolicy, Behavior, Level, Monitor, guards
from riprap.conclusion import conclude
from riprap.errors import ConfigError
from riprap.guards import _auto_guard
from riprap.types import Action

WATCHFUL = AlertPolicy.parse({"name": "low", "detectors": [{"kind": "forecast"}]}, "here")


def auto_guard(**options: object) -> guards.AutoGuard:
    replay = guards.Replay(BATCHES, loss=old_loss, fraction=0.5)
    return guards.AutoGuard(replay=replay, **options)  # type: ignore[arg-type]


def worst(run: Run) -> float:
    with torch.no_grad():
        return float((run.model(OLD)[:, -1].argmax(-1) == ANSWERS).float().mean())


def test_while_all_is_calm_training_is_as_without_it() -> None:
    plain, run = (Run(guard).go([(OLD, ANSWERS)] * 20) for guard in (None, auto_guard()))
    assert all(map(torch.equal, plain.weights(), run.weights()))
    assert not [action for action in run.monitor.actions if action.applied]


def test_it_keeps_what_training_alone_loses() -> None:
    plain, run = Run(None).go(lessons(60)), Run(auto_guard()).go(lessons(60))
    assert worst(plain) < 0.6
    assert worst(run) >= 0.9
    assert {action.guard for action in run.monitor.actions} == {"auto_guard/adaptive_replay"}


def test_it_works_with_a_self_distillation_buffer() -> None:
    rate = 0.005  # at the other tests' rate all is lost before anything can be seen
    plain = Words(None, rate).go()
    run = Words(guards.AutoGuard(replay=guards.AdaptiveReplay(pool(), every=1)), rate).go()
    assert run.score() > plain.score() + 0.1


def test_it_rolls_back_if_replay_does_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old batches hold nothing of what is watched: replay of them helps nobody."""
    monkeypatch.setattr(_auto_guard, "CRITICAL_PATIENCE", 5)
    useless = guards.Replay(lessons(2), loss=old_loss, fraction=0.5)
    rollback = guards.Rollback(every=2, lr_factor=0.5, keep_learning=False)
    run = Run(guards.AutoGuard(replay=useless, rollback=rollback))
    run.monitor = Monitor(behaviors(), policy=WATCHFUL, probe_every=5)
    run.go(lessons(80))
    back = [action for action in run.monitor.actions if action.guard == "auto_guard/rollback"]
    assert back
    assert back[0].applied
    critical = [a.step for a in run.monitor.alerts if a.level is Level.CRITICAL]
    assert back[0].step + 1 >= critical[0] + 5  # it is told before the step after which it acts


class Scripted:
    """Training watched by one behavior whose score follows a script; replay helps nobody."""

    def __init__(self, score: Callable[[int], float], **options: Any) -> None:
        torch.manual_seed(0)
        self.step, self.inputs = 0, torch.randn(20, 4)
        self.model = torch.nn.Linear(4, 4)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-2)

        def margins(model: torch.nn.Module, probes: torch.Tensor) -> torch.Tensor:
            passing = torch.arange(20) < round(20 * score(self.step))
            return torch.where(passing, 1.0, -1.0) + 0 * model(probes).sum(1)

        def loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
            return functional.cross_entropy(model(batch), torch.zeros(20, dtype=torch.long))

        self.guard = guards.AutoGuard(replay=guards.Replay([self.inputs], loss=loss), **options)
        behavior = Behavior("scripted", self.inputs, margins)
        self.monitor = Monitor([behavior], probe_every=20)
        self.weights: list[torch.Tensor] = []

    def go(self, steps: int) -> Scripted:
        target = torch.ones(20, dtype=torch.long)
        with (
            warnings.catch_warnings(record=True) as self.warned,
            self.monitor.watch(self.model, self.optimizer, guard=self.guard),
        ):
            warnings.simplefilter("always")
            for self.step in range(1, steps + 1):
                self.optimizer.zero_grad()
                functional.cross_entropy(self.model(self.inputs), target).backward()
                self.optimizer.step()
                self.weights.append(self.model.weight.detach().clone())
        return self

    def actions(self, guard: str) -> list[Action]:
        return [action for action in self.monitor.actions if action.guard == f"auto_guard/{guard}"]


def test_a_behavior_that_has_recovered_is_not_rolled_back() -> None:
    """Broken from step 3 to 108: the evaluation at which the rollback would act shows 1.0."""
    run = Scripted(
        lambda step: 0.0 if 3 <= step <= 108 else 1.0,
        rollback=guards.Rollback(every=100, keep_learning=False),
    ).go(140)
    (said,) = run.actions("rollback")
    assert not said.applied
    assert said.detail == "scripted: recovered, so nothing was restored"
    assert run.optimizer.param_groups[0]["lr"] == 1e-2
    still = Scripted(
        lambda step: 0.0 if step >= 3 else 1.0,
        rollback=guards.Rollback(every=100, keep_learning=False),
    ).go(140)
    assert [action.applied for action in still.actions("rollback")] == [True]


def test_a_floor_that_replay_cannot_hold_is_said_once_and_learning_goes_on() -> None:
    run = Scripted(lambda step: 1.0 if step < 3 else 0.5, rollback=True).go(400)
    (told,) = run.actions("adaptive_replay")[-1:]
    (unheld,) = (a for a in run.actions("adaptive_replay") if not a.applied)
    assert "do not hold the score of scripted (0.50, to keep 0.95" in unheld.detail
    assert "the new rows contradict the old examples" in unheld.detail  # the same, with others
    assert told.applied  # replay goes on too
    own = [str(w.message) for w in run.warned if "do not hold" in str(w.message)]
    assert len(own) == 1
    (refused,) = run.actions("rollback")
    assert not refused.applied
    assert "training goes on: no later state than the start was healthy" in refused.detail
    assert not run.monitor.should_stop
    assert run.optimizer.param_groups[0]["lr"] == 1e-2
    moves = [float((b - a).abs().max()) for a, b in pairwise(run.weights)]
    assert min(moves) > 0
    assert max(moves) < 1e-2  # nothing was put back


def test_no_state_is_restored_twice_and_training_is_not_asked_to_stop() -> None:
    """Healthy until 149, then broken for good: one rollback, to a state that was learned."""
    run = Scripted(lambda step: 1.0 if step < 150 else 0.5, rollback=True).go(800)
    first, *later = run.actions("rollback")
    assert first.applied
    back = int(first.detail.split("the state of step ")[1])
    assert 100 <= back < 150
    assert torch.equal(run.weights[first.step - 1], run.weights[back - 1])
    assert later
    assert not any(action.applied for action in later)
    assert f"the state of step {back} was restored before" in later[0].detail
    assert not run.monitor.should_stop


def test_a_rollback_waits_for_replay_and_a_new_watch_begins_anew() -> None:
    guard = auto_guard(rollback=True)
    guard.on_alert(Alert(7, "first", Level.CRITICAL, "forecast", ""))
    assert guard.critical_since == {"first": 7}
    later = guards.OnAlert(guard)
    later.on_alert(Alert(7, "first", Level.CRITICAL, "forecast", ""))
    Run(later).go([(OLD, ANSWERS)])
    assert guard.critical_since == {}
    assert later.alerted == []
    assert guard.rollback is not None
    assert guard.rollback.alerted == []


def test_its_parts_can_be_chosen() -> None:
    replay_only = auto_guard(projection=False)
    assert [leaf.name for leaf in replay_only.flatten()] == ["adaptive_replay"]
    parts = ["adaptive_replay", "gem"]
    assert [leaf.name for leaf in auto_guard().flatten()] == parts
    assert [leaf.name for leaf in auto_guard(rollback=True).flatten()] == [*parts, "rollback"]


def test_its_repr_names_its_parts_and_its_examples() -> None:
    rows = Behavior.next_token("first", OLD[:2], ANSWERS[:2])
    text = repr(guards.AutoGuard(replay=guards.SelfDistillationBuffer([rows])))
    assert text.startswith("AutoGuard(AdaptiveReplay(")
    assert "SelfDistillationBuffer(first: 2)" in text
    assert "GEM(" in text


def test_options_that_it_would_ignore_are_refused() -> None:
    adaptive = guards.AdaptiveReplay([(OLD, ANSWERS)], loss=old_loss)
    for given in ({"keep": 0.99}, {"behaviors": ["first"]}):
        with pytest.raises(ConfigError, match="`keep` to the AdaptiveReplay"):
            guards.AutoGuard(replay=adaptive, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: auto_guard(shadow=True),
        lambda: guards.AutoGuard(
            replay=guards.Replay([(OLD, ANSWERS)], loss=old_loss, shadow=True)
        ),
        lambda: guards.Chain(guards.OnAlert(guards.L2SP(1.0), level="watch"), shadow=True),
        lambda: guards.Scheduled(guards.Chain(guards.L2SP(1.0)), shadow=True),
        lambda: guards.OnAlert(guards.L2SP(1.0), shadow=True),
    ],
)
def test_a_shadow_applies_to_all_parts(make) -> None:  # type: ignore[no-untyped-def]
    guard = make()
    assert next(iter(guard.flatten())).shadow
    run, plain = Run(guard).go(lessons(20)), Run(None).go(lessons(20))
    assert all(map(torch.equal, run.weights(), plain.weights()))


@pytest.mark.parametrize("replay", [None, [(OLD, ANSWERS)], guards.AGEM])
def test_without_old_examples_it_is_refused(replay: Any) -> None:
    with pytest.raises(ConfigError, match="it needs old examples to replay; give replay=Self"):
        guards.AutoGuard(replay=replay)


@pytest.mark.parametrize("keep", [0.0, 1.5])
def test_an_impossible_share_is_refused(keep: float) -> None:
    with pytest.raises(ConfigError, match="a share of a score must lie in"):
        auto_guard(keep=keep)


def test_it_projects_steps_where_the_buffer_is_too_small() -> None:
    """Two old examples are answered as before, and the other probes are lost all the same."""
    kept = {}
    for projection in (False, True):
        rows = Behavior.next_token("first", OLD[:2], ANSWERS[:2])
        monitored = Behavior.next_token("first", OLD[2:], ANSWERS[2:])
        buffer = guards.SelfDistillationBuffer([rows])
        run = Run(guards.AutoGuard(replay=buffer, projection=projection))
        run.monitor = Monitor([monitored], policy=WATCHFUL, probe_every=5)
        run.go(lessons(200))
        acted = {action.guard: action.step for action in run.monitor.actions if action.applied}
        first = [a.step for a in run.monitor.actions if a.guard == "auto_guard/gem"]
        replayed = [a.step for a in run.monitor.actions if a.guard == "auto_guard/adaptive_replay"]
        assert ("auto_guard/gem" in acted) is projection
        if projection:
            assert first[0] >= replayed[0] + 50  # replay alone is tried first
        (unheld,) = [a.detail for a in run.monitor.actions if "do not hold" in a.detail]
        assert "; 2 examples for 22 monitored probes)" in unheld
        kept[projection] = run.monitor.behavior_histories["first"].margins[-1].mean()
    assert kept[True] > kept[False]


def test_a_buffer_of_wrong_answers_is_told_at_the_start() -> None:
    monitored = Behavior.next_token("first", OLD[:12], ANSWERS[:12])
    for answers, wrong in ((ANSWERS[12:], 0), ((ANSWERS[12:] + 1) % 20, 1)):
        buffer = guards.SelfDistillationBuffer([Behavior.next_token("first", OLD[12:], answers)])
        run = Run(guards.AutoGuard(replay=buffer))
        run.monitor = Monitor([monitored], policy=WATCHFUL)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run.go(lessons(2))
        told = [str(w.message) for w in caught if "passes 0% of the 12 examples" in str(w.message)]
        assert len(told) == wrong


@pytest.mark.parametrize("shift", [0, 1])
def test_wrong_examples_are_named_again_where_they_do_not_help(shift: int) -> None:
    """In the words of the start: in what the guard says, in the alerts, and in what would help."""
    monitored = Behavior.next_token("first", OLD[:12], ANSWERS[:12])
    rows = Behavior.next_token("first", OLD[12:], (ANSWERS[12:] + shift) % 20)
    guard = guards.AutoGuard(replay=guards.SelfDistillationBuffer([rows]))
    run = Run(guard)
    run.monitor = Monitor([monitored], policy=WATCHFUL, probe_every=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.go(lessons(200))
    advice = conclude(run.monitor.record).advice
    if not shift:
        assert guard.doubts == {}
        said = [own.message for own in run.monitor.alerts] + [str(own.message) for own in caught]
        assert not any("check that" in text for text in [*said, advice])
        return
    doubt = guard.doubts["first"]
    assert doubt.startswith("the model passes 0% of the 12 examples of 'first' in the replay")
    told = [str(own.message) for own in caught if doubt in str(own.message)]
    assert len(told) == 3
    assert told[0] == f"riprap: {doubt}"
    assert "replay alone does not bring a score back" in told[1]
    assert "do not hold the score of first" in told[2]
    assert "a larger fraction" not in told[2]
    (unheld,) = [own for own in run.monitor.actions if "do not hold" in own.detail]
    assert doubt in unheld.detail
    assert run.monitor.alerts
    assert all(own.message.endswith(f"; {doubt}") for own in run.monitor.alerts)
    assert advice == f"Mend the old examples of first: {doubt}."
    later = guards.AutoGuard(replay=guards.SelfDistillationBuffer([rows]))
    later.load_state_dict(guard.state_dict())
    assert later.doubts == {"first": doubt}


def test_margins_without_a_gradient_leave_replay_alone() -> None:
    """A custom margin off the graph: steps cannot be projected, and that is said at the start."""

    def margins(model: torch.nn.Module, probes: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return 1.0 + 0 * model(probes)[:, -1, 0]

    run = Run(auto_guard())
    run.monitor = Monitor([Behavior("off", OLD, margins)], policy=WATCHFUL)
    with pytest.warns(UserWarning, match=r"'off' has no protected gradient.*replay alone"):
        run.go(lessons(3))


def test_a_part_that_is_used_alone_later_has_its_own_name() -> None:
    replay = guards.AdaptiveReplay([(OLD, ANSWERS)], loss=old_loss, every=1)
    whole = guards.AutoGuard(replay=replay, projection=False)
    for guard, label in (
        (replay, "adaptive_replay"),
        (whole, "auto_guard/adaptive_replay"),
        (replay, "adaptive_replay"),
    ):
        run = Run(guard).go(lessons(8))
        assert {action.guard for action in run.monitor.actions} == {label}
