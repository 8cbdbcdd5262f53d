"""`riprap doctor`: a working installation passes, and each planted fault is detected."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from riprap.cli._app import app
from riprap.commands import _doctor as doctor
from riprap.monitor import Monitor
from riprap.monitor._watch_session import WatchSession


def failed(checks: list[doctor.Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def test_a_working_installation_passes() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert all(check["passed"] for check in found["checks"])
    assert "alert at step" in found["checks"][0]["detail"]
    assert found["versions"]["torch"] == torch.__version__


def test_a_monitor_without_alerts_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Monitor, "alerts", property(lambda self: []))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 2
    assert "FAIL an alert comes before the break" in result.output


def test_a_monitor_that_changes_weights_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = WatchSession.after_step

    def meddle(self: WatchSession, update: list[torch.Tensor]) -> None:
        original(self, update)
        with torch.no_grad():
            self.probe_runner.parameters[0].add_(1e-6)

    monkeypatch.setattr(WatchSession, "after_step", meddle)
    assert failed(doctor.self_test()) == {"training is unchanged, bit for bit"}


def test_a_failing_monitor_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: WatchSession, update: list[torch.Tensor]) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(WatchSession, "after_step", broken)
    assert "an alert comes before the break" in failed(doctor.self_test())


def test_the_generator_of_the_caller_is_unchanged() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    doctor.self_test()
    assert torch.equal(before, torch.get_rng_state())
