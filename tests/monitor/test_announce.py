"""Alerts are told once, to the log and to the user; the summary is a few plain sentences."""

from __future__ import annotations

import copy
import logging
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dial import Dial, below, reading, turn
from loops import flat, task, train
from riprap import AlertPolicy, Behavior, Margins, Monitor, Reading, guards
from riprap.detectors import Threshold
from riprap.monitor import _announce
from riprap.record import Reader
from riprap.types import Alert, Level


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "riprap"]


def test_an_alert_is_logged_once_when_a_level_rises(caplog: pytest.LogCaptureFixture) -> None:
    levels = [below(1.5, Level.WATCH), below(1.0, Level.WARNING), below(0.5, Level.CRITICAL)]
    monitor = Monitor([reading()], policy=AlertPolicy(name="t", detectors=levels), probe_every=1)
    told: list[Alert] = []
    monitor._run.announcer._on_alert = told.append
    turn(monitor, [2, 1.4, 0.9, 1.6, 1.6, 0.9, 1.4, 0.4, 0.4])
    # Withdrawn at 4, so the rise at 5 is told again.
    expected = [(1, "watch"), (2, "warning"), (5, "warning"), (7, "critical")]
    assert [(alert.step, str(alert.level)) for alert in told] == expected
    said = [line.split(": ")[1] for line in lines(caplog)]
    assert said == [f"step {step}, {level}" for step, level in expected]
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert len(monitor.alerts) > len(told)  # the record keeps every raise


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.5, "broken: score 0.00 is under its floor 0.90"), (float("nan"), "not finite")],
)
def test_a_break_is_told_although_a_critical_alert_stands(
    value: float, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy = AlertPolicy(name="t", detectors=[below(1.0, Level.CRITICAL)])
    turn(Monitor([reading()], policy=policy, probe_every=1), [2, 0.5, value, value, 0.5])
    said = [line for line in lines(caplog) if ", critical: " in line]
    assert [line[:26] for line in said] == [f"riprap: step {at}, critical: " for at in (1, 2)]
    assert text in said[1]


def test_a_break_that_an_alert_tells_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    policy = AlertPolicy.parse({"name": "t", "detectors": [{"kind": "forecast"}]}, "here")
    turn(Monitor([reading()], policy=policy, probe_every=1), [2, 2, -0.5, -0.6])
    assert sum("broken" in line for line in lines(caplog)) == 1


def test_two_levels_at_once_are_told_as_the_higher() -> None:
    told: list[Alert] = []
    levels = [below(1.0, Level.WATCH), below(1.0, Level.CRITICAL)]
    policy = AlertPolicy(name="t", detectors=levels)
    turn(Monitor([reading()], policy=policy, probe_every=1, on_alert=told.append), [2, 0.5, 0.5])
    assert [str(alert.level) for alert in told] == ["critical"]


def test_a_function_of_the_user_that_fails_ends_nothing(
    learned: nn.Module, memory: Behavior
) -> None:
    policy = AlertPolicy(name="t", detectors=[Threshold(signal="score", side="below", value=2.0)])

    def fail(alert: Alert) -> None:
        raise KeyError("mine")

    alone = copy.deepcopy(learned)
    train(alone, torch.optim.SGD(alone.parameters(), lr=1e-2), task(4))
    monitor = Monitor([memory], policy=policy, on_alert=fail)
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    with (
        pytest.warns(UserWarning, match="on_alert failed at step 0: KeyError: 'mine'"),
        monitor.watch(learned, optimizer),
    ):
        train(learned, optimizer, task(4))
    assert (flat(learned) == flat(alone)).all()
    assert monitor.history().query("signal == 'on_alert'").state.tolist() == ["ERROR"]


@pytest.mark.parametrize(("stop_on", "step"), [("warning", 2), ("critical", 3), (None, None)])
def test_training_is_asked_to_stop(stop_on: str | None, step: int | None) -> None:
    levels = [below(1.0, Level.WARNING), below(0.5, Level.CRITICAL)]
    policy = AlertPolicy(name="t", detectors=levels)
    monitor = Monitor([reading()], policy=policy, probe_every=1, stop_on=stop_on)
    dial = Dial(2)
    optimizer = torch.optim.SGD(dial.parameters(), lr=1.0)
    stopped = None
    with monitor.watch(dial, optimizer):
        for at, value in enumerate([1.5, 0.9, 0.4, 0.3], 1):
            dial.value.grad = dial.value.detach() - value
            optimizer.step()
            if monitor.should_stop and stopped is None:
                stopped = at
    assert stopped == step
    with Reader(monitor.record) as reader:
        asked = [own["step"] for own in reader.events() if own["kind"] == "stop_asked"]
    assert asked == ([] if step is None else [step])
    if step is not None:
        assert str(monitor.stop_reason).startswith(f"stop_on='{stop_on}': step {step}, {stop_on}")
        assert f"Training was asked to stop: stop_on='{stop_on}'" in monitor.summary()


def test_the_summary_of_a_run_that_broke() -> None:
    policy = AlertPolicy(name="t", detectors=[below(1.0, Level.WARNING)])
    both = [reading("low", -1.0), reading("high", 1.0)]
    monitor = Monitor(both, policy=policy, probe_every=1)
    turn(monitor, [3, 1.8, 1.5, 0.9, 0.8, 1.2])
    *lines, cost = monitor.summary().split("\n")
    assert lines == [
        "Low broke at step 3 and is above its floor again.",
        "What would help: Add a guard for low (`guard=guards.AutoGuard(...)`).",
        "5 steps watched, 6 probe evaluations.",
        "low: score 1.00 → 1.00 (floor 0.9); broke at step 3 and is above its floor again. "
        "Alerts that stand: warning at step 1.",
        "high: score 1.00 → 1.00 (floor 0.9).",
    ]
    assert re.fullmatch(r"The monitor took [\d.e-]+ s\.", cost)


def test_the_summary_says_what_a_guard_did(learned: nn.Module, memory: Behavior) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    monitor = Monitor([memory])
    with monitor.watch(learned, optimizer, guards.L2SP(0.1)):
        train(learned, optimizer, task(4))
    (sentence,) = guards.describe_actions(monitor.actions)
    assert sentence.startswith("l2_sp changed 4 steps")
    assert f"Guard {sentence}" in monitor.summary().split("\n")


def test_what_starts_below_its_floor_is_not_broken() -> None:
    policy = AlertPolicy(name="t", detectors=[below(1.0, Level.WARNING)])
    monitor = Monitor([reading("lost", -5.0), reading("kept")], policy=policy, probe_every=1)
    with pytest.warns(UserWarning, match=r"starts below its floor: 0\.00 < 0\.90") as caught:
        turn(monitor, [2, 1.5])
    assert {Path(one.filename).name for one in caught} == {"dial.py"}  # the caller's line
    assert monitor.broken() == {"lost": None, "kept": None}
    assert monitor.below_floor() == {"lost": 0.0}
    assert (
        "lost: score 0.00 → 0.00 (floor 0.9); it starts below its floor: 0.00 < 0.90, and is "
        in (monitor.summary())
    )
    assert "keep_passing=True" in monitor.summary()


def gated(open_until: int) -> Behavior:
    """Margins that are not those of the behavior after so many evaluations."""
    count = [0]

    def margins(model: nn.Module, probes: int) -> Margins | Tensor:
        count[0] += 1
        values = model().expand(probes)
        return values if count[0] <= open_until else Margins(values, "the format is lost")

    return Behavior("gated", 10, margins)


def test_a_behavior_that_stops_being_measured_is_alerted_on() -> None:
    policy = AlertPolicy(name="t", detectors=[below(-9.0, Level.WARNING)])
    monitor = Monitor([gated(3), reading()], policy=policy, probe_every=1)
    turn(monitor, [2, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4])
    alerts = [(a.step, a.behavior, a.detector, str(a.level)) for a in monitor.alerts]
    assert alerts == [(4, "gated", "unmeasured", "warning")]
    assert monitor.alerts[0].message.endswith("2 probe evaluations in a row: the format is lost")
    assert sorted(monitor.metrics()) == ["riprap/dial/margin", "riprap/dial/score"]
    assert "gated: score 1.00 → 1.00 (floor 0.9), not measured since step 2" in monitor.summary()
    assert "From step 4: not measured at 2 probe evaluations in a row" in monitor.summary()


def test_a_guard_is_not_set_off_by_what_is_not_measured() -> None:
    guard = guards.OnAlert(guards.L2SP(0.1), level="warning")
    policy = AlertPolicy(name="t", detectors=[below(-9.0, Level.WARNING)])
    monitor = Monitor([gated(1), reading()], policy=policy, probe_every=1)
    dial = Dial(2)
    optimizer = torch.optim.SGD(dial.parameters(), lr=0.0)
    with monitor.watch(dial, optimizer, guard):
        for _ in range(5):
            dial.value.grad = torch.ones(1)
            optimizer.step()
    assert {alert.detector for alert in monitor.alerts} == {"unmeasured", "not_training"}
    assert monitor.actions == []


@pytest.mark.parametrize("fails", ["margins", "signal", "alert"])
def test_warnings_as_errors_end_nothing(
    learned: nn.Module, memory: Behavior, fails: str, caplog: pytest.LogCaptureFixture
) -> None:
    count = [0]

    def margins(model: nn.Module, probes: Any) -> Tensor:
        count[0] += 1
        if count[0] > 3 and fails == "margins":
            raise ValueError("no such probe")
        return memory.margins(model, probes)

    def on_alert(alert: Alert) -> None:
        raise ValueError("no such alert")

    policy = AlertPolicy(name="t", detectors=[Threshold(signal="score", side="below", value=2.0)])
    monitor = Monitor([Behavior("weak", memory.probes, margins)], policy=policy, on_alert=on_alert)
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with monitor.watch(learned, optimizer):
            if fails == "signal":
                monitor.signals[0].on_update = None  # type: ignore[method-assign]
            train(learned, optimizer, task(5))
    assert monitor.step == 5
    assert "ERROR" in set(monitor.history().state)
    assert any("failed" in line or "could not" in line for line in lines(caplog))


def test_long_first_evaluations_are_said(caplog: pytest.LogCaptureFixture) -> None:
    def margins(model: nn.Module, probes: int) -> Tensor:
        time.sleep(0.2)
        return model().expand(probes)

    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO, "riprap"):
        patch.setattr(_announce, "PATIENCE_SECONDS", 0.05)
        turn(Monitor([Behavior("slow", 10, margins)]), [2, 1.9])
    said = [line for line in lines(caplog) if "evaluat" in line]
    assert said[0] == "riprap: evaluating the probes of 1 behaviors before training …"
    assert said[1].startswith("riprap: evaluated 10 probes in 0.")


def test_a_fast_first_evaluation_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "riprap"):
        turn(Monitor([reading()]), [2, 1.9])
    assert not [line for line in lines(caplog) if "evaluat" in line]


def test_texts_are_short() -> None:
    own = Reading.of(3, "refusal", "margin", 0.123456, "nats")
    assert str(own) == "step 3, refusal margin: 0.1235 nats"
    alert = Alert(3, "refusal", Level.WARNING, "slope", "the margin falls", (own,))
    assert str(alert) == "step 3, warning: refusal: the margin falls"
    assert repr([alert]) == "[<Alert slope: step 3, warning: refusal: the margin falls>]"
    monitor = Monitor([reading()])
    turn(monitor, [2, 1.9])
    assert str(monitor) == "<Monitor: dial 1.00; step 1, 0 alerts>"


def test_alerts_reach_a_console_without_any_set_up() -> None:
    code = (
        "import torch; from riprap import AlertPolicy, Behavior, Monitor\n"
        "from riprap.detectors import Threshold\n"
        "net = torch.nn.Linear(1, 1)\n"
        "low = Threshold(signal='score', side='below', value=2)\n"
        "policy = AlertPolicy(name='t', detectors=[low])\n"
        "behavior = Behavior('b', 10, lambda model, n: model.weight.sum().expand(n) + 9)\n"
        "monitor = Monitor([behavior], policy=policy)\n"
        "optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)\n"
        "with monitor.watch(net, optimizer):\n"
        "    net(torch.ones(1)).sum().backward(); optimizer.step()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "riprap: step 0, warning: b: score is 1, below 2" in ended.stderr
