"""A failing observer warns, records the failure, and lets training continue to the same end."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from loops import flat, task, train
from riprap import AlertPolicy, Behavior, Margins, Monitor, Reading, ReadingStatus, signals
from riprap.detectors import Threshold
from riprap.errors import RecordError
from riprap.signals import ProbeView, Signal, StepView


def failing_from(step: int, behavior: Behavior, what: Callable[[Tensor], Any]) -> Behavior:
    """Margins that go wrong from the so many-th time they are asked for."""
    count = [0]

    def margins(model: nn.Module, probes: Any) -> Any:
        count[0] += 1
        values = behavior.margins(model, probes)
        return what(values) if count[0] > step else values

    return Behavior("weak", behavior.probes, margins)


def crash(_: Tensor) -> Tensor:
    raise ValueError("no such probe")


def end_of(net: nn.Module, monitor: Monitor | None, count: int = 12) -> np.ndarray:
    """The weights after training a copy of `net`, watched or not."""
    model = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-1)
    if monitor is None:
        train(model, optimizer, task(count))
    else:
        with monitor.watch(model, optimizer):
            train(model, optimizer, task(count))
    return flat(model)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        (crash, "ValueError: no such probe"),
        (lambda v: v[0], "the margin function returned ()"),
        (lambda v: v * float("nan"), "24 of 24 margins are not finite"),
    ],
)
def test_margins_that_fail_in_mid_training(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, what: Callable, text: str
) -> None:
    weak = failing_from(4, memory, what)
    monitor = Monitor([weak, memory], policy=policy, probe_every=2)
    expected = end_of(learned, None)
    if "finite" in text:
        found = end_of(learned, monitor)
    else:
        with pytest.warns(UserWarning, match="could not evaluate 'weak'"):
            found = end_of(learned, monitor)
    assert np.array_equal(found, expected)
    history = monitor.history()
    own = history[(history.behavior == "weak") & (history.signal == "margin")]
    assert own.state.tolist()[:5] == ["MEASURED"] * 4 + ["ERROR"]
    assert own.value[own.state == "ERROR"].isna().all()
    assert all(text in detail for detail in own.detail[own.state == "ERROR"])
    others = history[(history.behavior == "memory") & (history.signal == "margin")]
    assert set(others.state) == {"MEASURED"}
    lost = [alert for alert in monitor.alerts if alert.detector == "not_finite"]
    if "finite" in text:  # said once, and the behavior counts as broken from then on
        at = int(own.step[own.state == "ERROR"].iloc[0])
        assert [(a.step, a.behavior, str(a.level)) for a in lost] == [(at, "weak", "critical")]
        assert monitor.behavior_histories["weak"].diverged_step == at
        assert (monitor.broken()["weak"] or 0) <= at
    else:
        assert lost == []
    assert len(others) >= len(own)


def test_margins_that_recover_are_read_again(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    count = [0]

    def margins(model: nn.Module, probes: Any) -> Tensor:
        count[0] += 1
        if count[0] == 3:
            raise ValueError("once")
        return memory.margins(model, probes)

    monitor = Monitor([Behavior("weak", memory.probes, margins)], policy=policy)
    with pytest.warns(UserWarning, match="once"):
        end_of(learned, monitor, 6)
    own = monitor.history().query("signal == 'margin'")
    assert own.state.tolist() == ["MEASURED"] * 2 + ["ERROR"] + ["MEASURED"] * 4


class Broken(Signal):
    """Fails at one moment, from the second step on."""

    name = "broken"

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def __getattribute__(self, name: str) -> Any:
        if name == object.__getattribute__(self, "__dict__").get("moment"):
            return lambda view: [] if view.step < 2 else crash(torch.ones(1))
        return object.__getattribute__(self, name)


@pytest.mark.parametrize("moment", ["on_gradient", "on_update", "on_probe_evaluation"])
def test_a_signal_that_fails_spares_the_others_and_the_alerts(
    learned: nn.Module, memory: Behavior, moment: str
) -> None:
    detectors = [Threshold(signal="score", side="below", value=0.9)]
    policy = AlertPolicy(name="test", detectors=detectors)
    whole = Monitor([memory], policy=policy, signals=signals.per_step())
    expected = end_of(learned, whole)
    monitor = Monitor([memory], policy=policy, signals=[Broken(moment), *signals.per_step()])
    with pytest.warns(UserWarning, match="broken failed at step .*no such probe"):
        found = end_of(learned, monitor)
    assert np.array_equal(found, expected)
    assert [a.step for a in monitor.alerts] == [a.step for a in whole.alerts] != []
    history = monitor.history()
    failed = history[history.signal == "broken"]
    assert set(failed.state) == {"ERROR"}
    moments = (
        whole.behavior_histories["memory"].steps if moment == "on_probe_evaluation" else range(13)
    )
    assert failed.step.tolist() == [step for step in moments if step >= 2]
    rest = history[history.signal != "broken"].reset_index(drop=True)
    assert rest.equals(whole.history())


def test_a_record_that_cannot_be_written_ends_nothing(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = Monitor([memory], policy=policy)
    expected = end_of(learned, None)

    def full(*_: Any) -> None:
        raise RecordError("the disk is full")

    model = copy.deepcopy(learned)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-1)
    with (
        pytest.warns(UserWarning, match="the disk is full"),
        monitor.watch(model, optimizer),
    ):
        for part in ("flush", "add_readings", "add_margins"):
            monkeypatch.setattr(monitor.record, part, full)
        train(model, optimizer, task(12))
    assert np.array_equal(flat(model), expected)
    assert monitor.step == 12


def test_an_error_in_the_users_loop_is_the_users(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    monitor = Monitor([memory], policy=policy)
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    with pytest.raises(KeyError, match="mine"), monitor.watch(learned, optimizer):
        train(learned, optimizer, task(10))
        raise KeyError("mine")
    assert not optimizer._optimizer_step_pre_hooks
    assert monitor.behavior_histories["memory"].steps[-1] == 10
    with monitor.watch(learned, optimizer):
        train(learned, optimizer, task(1))
    assert monitor.step == 11


def test_an_error_in_the_users_loop_is_not_hidden_by_one_of_the_observer(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    monitor = Monitor([memory], policy=policy, signals=[Broken("on_probe_evaluation")])
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    with (
        pytest.warns(UserWarning, match="broken failed"),
        pytest.raises(KeyError, match="mine"),
        monitor.watch(learned, optimizer),
    ):
        train(learned, optimizer, task(10))
        raise KeyError("mine")


def test_an_insufficient_margin_is_no_number(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    def gated(model: nn.Module, probes: Any) -> Margins:
        return Margins(memory.margins(model, probes), "the gate is shut")

    monitor = Monitor([Behavior("gated", memory.probes, gated)], policy=policy)
    end_of(learned, monitor, 6)
    assert monitor.step == 6
    assert [(a.detector, a.step, a.behavior) for a in monitor.alerts] == [
        ("unmeasured", 1, "gated")
    ]
    own = monitor.history().query("signal == 'margin'")
    assert set(own.state) == {str(ReadingStatus.INSUFFICIENT)}
    assert set(own.detail) == {"the gate is shut"}
    assert monitor.broken() == {"gated": None}
    assert monitor.metrics() == {}


class Counting(Signal):
    """Counts its moments."""

    name = "counting"

    def __init__(self) -> None:
        self.moments: list[tuple[str, int]] = []

    def start(self, view: ProbeView) -> None:
        self.moments.append(("start", view.step))

    def on_gradient(self, view: StepView) -> list[Reading]:
        self.moments.append(("gradient", view.step))
        return []

    def on_update(self, view: StepView) -> list[Reading]:
        self.moments.append(("update", view.step))
        return []

    def on_probe_evaluation(self, view: ProbeView) -> list[Reading]:
        self.moments.append(("probes", view.step))
        return [Reading.of(view.step, "memory", "counting", 1.0)]


def test_a_signal_has_its_moments_in_order(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    signal = Counting()
    end_of(learned, Monitor([memory], policy=policy, signals=[signal]), 2)
    assert signal.moments == [
        *(("start", 0), ("probes", 0), ("gradient", 1), ("update", 1), ("probes", 1)),
        *(("gradient", 2), ("update", 2), ("probes", 2)),
    ]
