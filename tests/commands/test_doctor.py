"""The doctor: a healthy house passes, and each thing that may be wrong is found."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from riprap.cli import app
from riprap.commands import _doctor as doctor
from riprap.monitor import Monitor
from riprap.monitor._watch_session import Watchman


def failed(checks: list[doctor.Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def test_a_healthy_house_passes_in_seconds() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert all(check["passed"] for check in found["checks"])
    assert "alert at step" in found["checks"][0]["detail"]
    assert found["versions"]["torch"] == torch.__version__


def test_a_monitor_that_says_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Monitor, "alerts", property(lambda self: []))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 2
    assert "FAIL a decline is announced" in result.output


def test_a_monitor_that_draws_a_number_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Watchman.after_step

    def meddle(self: Watchman, update: list[torch.Tensor]) -> None:
        original(self, update)
        with torch.no_grad():
            self.visitor.parameters[0].add_(1e-6)

    monkeypatch.setattr(Watchman, "after_step", meddle)
    assert failed(doctor.self_test()) == {"training is left as it is, bit for bit"}


def test_an_observer_that_fails_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Watchman, update: list[torch.Tensor]) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Watchman, "after_step", broken)
    assert "a decline is announced" in failed(doctor.self_test())


def test_it_leaves_the_callers_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    doctor.self_test()
    assert torch.equal(before, torch.get_rng_state())
