"""What a monitor reads around plain PyTorch loops, and what its record keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from loops import flat, mean_margin_gradient, task, train
from riprap import AlertPolicy, Behavior, Monitor, signals
from riprap.detectors import Threshold
from riprap.monitor._probe_schedule import ProbeSchedule
from riprap.record import Reader
from tiny import PlainLM


def test_steps_are_counted_and_read(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    monitor = Monitor([memory], policy=policy, probe_every=5, signals=signals.per_step())
    optimizer = torch.optim.AdamW(learned.parameters(), lr=1e-3)
    with monitor.watch(learned, optimizer) as watching:
        assert watching is monitor
        train(learned, optimizer, task(33))
    assert monitor.step == 33
    history = monitor.history()
    measured = history[history.state == "MEASURED"]
    for signal in ("interference", "norm_gradient", "norm_update", "cosine_margin"):
        assert measured[measured.signal == signal].step.tolist() == list(range(1, 34))
    evaluated = measured[measured.signal == "margin"].step.tolist()
    assert evaluated[:9] == list(range(9))
    assert evaluated[-1] == 33
    assert np.diff(evaluated).max() <= 5
    assert measured[measured.signal == "score"].step.tolist() == evaluated
    columns = ["step", "behavior", "signal", "value", "state", "unit", "layer", "detail"]
    assert list(history.columns) == columns
    assert history[history.state != "MEASURED"].value.isna().all()


def test_readings_are_what_an_independent_loop_measures(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProbeSchedule, "should_refresh_gradients", lambda *_: True)
    monitor = Monitor([memory], policy=policy, probe_every=1)
    optimizer = torch.optim.AdamW(learned.parameters(), lr=1e-1)
    expected: dict[str, list[float]] = {"margin": [], "score": [], "interference": []}

    def evaluate() -> None:
        inputs, labels = memory.probes
        with torch.no_grad():
            logits = learned(inputs).double()
        mine = torch.eye(4, dtype=torch.bool)[labels]
        lead = logits[mine] - logits.masked_fill(mine, -np.inf).amax(1)
        expected["margin"].append(float(lead.mean()))
        expected["score"].append(float((logits.argmax(1) == labels).double().mean()))

    with monitor.watch(learned, optimizer):
        evaluate()
        for batch in task(7):
            h, old = mean_margin_gradient(learned, memory), flat(learned)
            train(learned, optimizer, [batch])
            expected["interference"].append(float(h @ (flat(learned) - old)))
            evaluate()
    history = monitor.history()
    for signal, numbers in expected.items():
        found = history[history.signal == signal].value
        np.testing.assert_allclose(found, numbers, rtol=1e-3, atol=1e-5)
    under = [step for step, score in enumerate(expected["score"]) if score < memory.floor]
    assert under
    assert monitor.broken() == {"memory": under[0]}


def test_nothing_is_broken_where_nothing_is_learned(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    monitor = Monitor([memory], policy=policy)
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.0)
    with monitor.watch(learned, optimizer):
        train(learned, optimizer, task(30))
    assert monitor.broken() == {"memory": None}
    assert [alert.detector for alert in monitor.alerts] == ["not_training"]
    assert "learning rate is 0" in monitor.alerts[0].message
    assert monitor.metrics()["riprap/memory/score"] == 1


def test_the_record_holds_the_run(learned: nn.Module, memory: Behavior, tmp_path: Path) -> None:
    detectors = [Threshold(signal="score", side="below", value=0.9)]
    policy = AlertPolicy(name="test", detectors=detectors).freeze()
    run = tmp_path / "run"
    monitor = Monitor(
        [memory], policy=policy, probe_every=7, run_dir=run, metadata={"why": "a test"}
    )
    optimizer = torch.optim.AdamW(learned.parameters(), lr=1e-1)
    with monitor.watch(learned, optimizer):
        train(learned, optimizer, task(20))
    with Reader(run) as reader:
        meta, margins = reader.meta(), reader.margins("memory")
        alerts, readings = reader.alerts(), reader.readings()
    assert meta["protocol_hash"] == policy.hash
    assert meta["protocol"]["detectors"][0]["value"] == 0.9
    assert meta["behaviors"] == [{"name": "memory", "floor": 0.9, "contrast": None}]
    assert meta["every"] == 7
    assert meta["notes"] == {"why": "a test"}
    assert meta["versions"]["torch"] == torch.__version__
    assert alerts == monitor.alerts
    assert alerts
    history = monitor.behavior_histories["memory"]
    assert list(margins) == history.steps
    for step, mine in zip(history.steps, history.margins, strict=True):
        np.testing.assert_allclose(margins[step], mine, rtol=1e-6)
    assert len(readings) == len(monitor.history())


def test_several_behaviors_of_other_lengths_in_a_model_that_cannot_pad(
    policy: AlertPolicy,
) -> None:
    model = PlainLM()
    short = Behavior.next_token("short", [[3, 4, 5], [6, 7, 8]], [9, 10])
    long = Behavior.next_token("long", [[3, 4, 5, 6, 7]], [9])
    monitor = Monitor([short, long], policy=policy, probe_every=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with pytest.warns(UserWarning, match="before training"), monitor.watch(model, optimizer):
        for _ in range(12):
            optimizer.zero_grad()
            model(torch.randint(0, 47, (4, 6))).square().mean().backward()
            optimizer.step()
    history = monitor.history()
    assert "ERROR" not in set(history.state)
    for name in ("short", "long"):
        own = history[(history.behavior == name) & (history.signal == "margin")]
        assert own.step.tolist()[:5] == [0, 1, 2, 3, 4]
        assert own.step.tolist()[-1] == 12


def test_detached_margins_are_watched_without_interference(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    attached = memory.margins
    cut = Behavior("cut", memory.probes, lambda m, p: attached(m, p).detach())
    monitor = Monitor([cut, memory], policy=policy)
    optimizer = torch.optim.AdamW(learned.parameters(), lr=1e-1)
    with monitor.watch(learned, optimizer):
        train(learned, optimizer, task(10))
    history = monitor.history()
    own = history[history.behavior == "cut"]
    stated = own[own.signal == "interference"]
    assert stated.state.tolist() == ["NOT_RUN"]
    assert "detached" in stated.detail.item()
    margins = history[history.signal == "margin"].pivot(index="step", columns="behavior")
    assert (margins["value"]["cut"] == margins["value"]["memory"]).all()
    assert monitor.broken()["cut"] == monitor.broken()["memory"] is not None


def test_every_signal_can_be_read(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    monitor = Monitor([memory], policy=policy, signals=signals.everything(), feature_layer="1")
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    with monitor.watch(learned, optimizer):
        train(learned, optimizer, task(3))
    history = monitor.history()
    assert "ERROR" not in set(history.state)
    read = set(history[history.state == "MEASURED"].signal)
    wanted = {
        "cosine_loss",
        "cosine_fisher",
        "cosine_margin",
        "energy_ratio",
        "drift_mean",
        "depth",
    }
    assert wanted | {"kl_start", "interference"} <= read
    assert set(history[history.signal == "energy_ratio"].layer) == {"1"}
