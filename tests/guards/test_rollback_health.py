"""Rollback: which states get a checkpoint, and how alerts continue after a rollback."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from guards.cases import Run, behaviors, lessons
from guards.test_rollback import RATE, RollbackLog, to_step
from riprap import AlertPolicy, Behavior, Monitor, guards

pytestmark = [
    pytest.mark.filterwarnings("ignore:riprap. guard rollback"),
    pytest.mark.filterwarnings("ignore:riprap could not evaluate"),
]
LATE = {
    "kind": "threshold",
    "signal": "score",
    "side": "below",
    "value": 0.9,
    "consecutive": 3,
    "level": "critical",
}


def test_no_checkpoint_of_a_broken_state_without_an_alert() -> None:
    run = Run(guards.Rollback(every=1, max_checkpoints=1, keep_learning=False), rate=RATE)
    policy = AlertPolicy.parse({"name": "late", "detectors": [LATE]}, "here")
    run.monitor = Monitor(behaviors(), policy=policy, probe_every=5)
    scores = [1.0]
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        for ids, targets in lessons(6):
            run.step(ids, targets)
            latest = run.monitor.behavior_histories["first"].margins[-1]
            scores.append(float((latest > 0).mean()))
    first = run.monitor.actions[0]
    back = to_step(first)
    assert first.step - back >= 3  # it was seen broken three times by then
    assert scores[back] >= 0.9
    assert max(scores[back + 1 : first.step]) < 0.9


def test_no_checkpoint_of_a_state_that_was_not_measured() -> None:
    fails = False

    def failing(model: Any, probes: Any) -> torch.Tensor:
        if fails:
            raise RuntimeError("no probes today")
        return second.margins(model, probes)

    one, second = behaviors()
    run = Run(guards.Rollback(every=1, max_checkpoints=1, keep_learning=False), rate=0.1)
    monitored = [one, Behavior("second", second.probes, failing)]
    run.monitor = Monitor(monitored, policy=run.monitor.policy, probe_every=5)
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        for step, (ids, targets) in enumerate(lessons(4), 1):
            fails = step > 1
            run.step(ids, targets)
    (action,) = run.monitor.actions
    assert (action.step, to_step(action)) == (4, 1)


def test_no_checkpoint_soon_after_a_rollback() -> None:
    seen = RollbackLog(guards.Rollback(every=3, max_rollbacks=9, keep_learning=False)).go(40)
    assert len(seen.backs) >= 4
    for earlier, later in zip(seen.backs[:-1], seen.backs[1:], strict=True):
        again = to_step(later) == to_step(earlier)
        assert again or to_step(later) - earlier.step >= 3


def test_what_was_given_up_is_not_judged_and_alerts_can_be_raised_anew() -> None:
    seen = RollbackLog(guards.Rollback(every=3, max_rollbacks=9, keep_learning=False)).go(40)
    monitor = seen.run.monitor
    for track in monitor.behavior_histories.values():
        for action in seen.backs:
            undone = range(to_step(action) + 1, action.step)
            assert not set(undone) & (set(track.steps) | set(track.interference))
    critical = [
        a.step for a in monitor.alerts if (str(a.level), a.behavior) == ("critical", "first")
    ]
    assert len(critical) >= 2
    history = monitor.history().query("signal == 'score' and behavior == 'first'")
    assert set(range(1, 7)) <= set(history.step)  # the record keeps all that was seen
