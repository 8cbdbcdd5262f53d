"""Composite guards: which guards are active at a step."""

from __future__ import annotations

import pytest

from guards.cases import Run, behaviors, lessons
from riprap import AlertPolicy, Level, Monitor, guards
from riprap.errors import ConfigError

WATCHFUL = {"name": "low", "detectors": [{"kind": "forecast"}]}


def steps_of(run: Run) -> list[int]:
    return [action.step for action in run.monitor.actions]


def test_a_schedule() -> None:
    run = Run(guards.Scheduled(guards.AGEM(), first=3, last=8, every=2)).go(lessons(12))
    assert steps_of(run) == [3, 5, 7]


def test_a_chain_passes_the_result_on() -> None:
    """The second of two equal guards finds nothing to do."""
    run = Run(guards.Chain(guards.AGEM(["first"]), guards.AGEM(["first"]))).go(lessons(6))
    first, second = run.monitor.actions[::2], run.monitor.actions[1::2]
    assert any(action.applied for action in first)
    for one, two in zip(first, second, strict=True):
        if one.applied:
            assert not two.applied
            assert two.before["first"] == pytest.approx(one.after["first"], abs=1e-6)


def test_on_alert_sleeps_until_there_is_one() -> None:
    run = Run(guards.OnAlert(guards.AGEM(refresh=1), level="critical", until="end"))
    run.monitor = Monitor(behaviors(), policy=AlertPolicy.parse(WATCHFUL, "here"), probe_every=5)
    run.go(lessons(60))
    critical = [alert.step for alert in run.monitor.alerts if alert.level is Level.CRITICAL]
    assert critical
    assert steps_of(run) == list(range(critical[0] + 1, 61))


def test_on_alert_sleeps_again_once_recovered() -> None:
    guard = guards.OnAlert(guards.AGEM(refresh=1), level="critical")
    run = Run(guard)
    run.monitor = Monitor(behaviors(), policy=AlertPolicy.parse(WATCHFUL, "here"), probe_every=5)
    from guards.cases import ANSWERS, OLD

    run.go(lessons(60) + [(OLD, ANSWERS)] * 120)
    acted = steps_of(run)
    assert acted
    assert acted[-1] < 180
    assert guard.alerted == []


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: guards.Chain(), "at least one"),
        (lambda: guards.OnAlert(guards.AGEM(), level="red"), "choose one of watch"),
        (lambda: guards.OnAlert(guards.AGEM(), until="later"), "choose 'recovered' or 'end'"),
        (lambda: guards.Scheduled(guards.AGEM(), first=5, last=4), "never acts"),
        (lambda: guards.Scheduled(guards.AGEM(), every=0), "never acts"),
    ],
)
def test_invalid_arguments_are_refused(make, text) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=text):
        make()
