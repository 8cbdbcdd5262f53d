"""AutoGuard: idle, then replay as needed, then a rollback."""

from __future__ import annotations

import pytest
import torch

from guards.cases import ANSWERS, OLD, Run, behaviors, lessons, old_loss
from guards.test_replay import BATCHES, Words, pool
from riprap import Alert, AlertPolicy, Level, Monitor, guards
from riprap.errors import ConfigError
from riprap.guards.replay import _auto_guard

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
    assert {action.guard for action in run.monitor.actions} == {"adaptive_replay"}


def test_a_mixed_step_never_goes_against_the_old_examples() -> None:
    run = Run(auto_guard()).go(lessons(60))
    products = [action.after["product"] for action in run.monitor.actions]
    raw = [action.before["product"] for action in run.monitor.actions]
    assert min(raw) < 0
    assert min(products) >= -1e-6


def test_a_higher_min_score_acts_sooner() -> None:
    """A higher demand is met by acting sooner."""
    runs = [Run(auto_guard(min_score=score)).go(lessons(30)) for score in (None, 1.0)]
    firsts = [run.monitor.actions[0].step for run in runs]
    assert firsts[1] <= firsts[0]
    assert worst(runs[1]) >= worst(runs[0])


def test_it_works_with_a_self_distillation_buffer() -> None:
    rate = 0.005  # at the other tests' rate all is lost before anything can be seen
    plain = Words(None, rate).go()
    run = Words(guards.AutoGuard(replay=guards.AdaptiveReplay(pool(), every=1)), rate).go()
    assert run.score() > plain.score() + 0.1


def test_it_rolls_back_if_replay_does_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old batches hold nothing of what is watched: replay of them helps nobody."""
    monkeypatch.setattr(_auto_guard, "CRITICAL_PATIENCE", 5)
    useless = guards.Replay(lessons(2), loss=old_loss, fraction=0.5)
    run = Run(guards.AutoGuard(replay=useless, rollback=guards.Rollback(every=2, lr_factor=0.5)))
    run.monitor = Monitor(behaviors(), policy=WATCHFUL, probe_every=5)
    run.go(lessons(80))
    back = [action for action in run.monitor.actions if action.guard == "rollback"]
    assert back
    assert back[0].applied
    critical = [a.step for a in run.monitor.alerts if a.level is Level.CRITICAL]
    assert back[0].step + 1 >= critical[0] + 5  # it is told before the step after which it acts


def test_a_rollback_waits_for_replay() -> None:
    guard = auto_guard()
    guard.on_alert(Alert(7, "first", Level.CRITICAL, "forecast", ""))
    assert guard.critical_since == {"first": 7}
    assert guard.rollback is not None
    assert guard.rollback.alerted == []


def test_it_can_do_without_a_rollback() -> None:
    assert [leaf.name for leaf in auto_guard(rollback=False).flatten()] == ["adaptive_replay"]
    assert [leaf.name for leaf in auto_guard().flatten()] == ["adaptive_replay", "rollback"]


def test_options_that_it_would_ignore_are_refused() -> None:
    adaptive = guards.AdaptiveReplay([(OLD, ANSWERS)], loss=old_loss)
    for given in ({"min_score": 0.99}, {"behaviors": ["first"]}):
        with pytest.raises(ConfigError, match="`min_score` to the AdaptiveReplay"):
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


def test_an_impossible_min_score_is_refused() -> None:
    with pytest.raises(ConfigError, match="a score must lie in"):
        auto_guard(min_score=1.5)
