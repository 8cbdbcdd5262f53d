"""`riprap doctor`: a working installation passes, and each planted fault is detected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from typer.testing import CliRunner

from launching import write_config
from riprap.cli._app import app
from riprap.commands import _doctor as doctor
from riprap.monitor import Monitor
from riprap.monitor._watch_session import WatchSession


def failed(checks: list[doctor.Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def test_a_working_installation_passes() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
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

    def meddle(self: WatchSession) -> None:
        original(self)
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


def lines(*arguments: str) -> list[str]:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    assert result.exit_code == 0, result.output
    return [line for line in result.stdout.splitlines() if "tensors" in line]


def test_it_names_what_a_model_would_train(tmp_path: Path) -> None:
    file = write_config(tmp_path)  # a LoRA adapter of rank 2
    full, *parts = lines(str(tmp_path / "model"))
    assert full.startswith("full fine-tuning (`lora: null`): trains 30 of 30 tensors, 8,144")
    assert "  embedding: 1 of 1 tensors, 752 parameters" in parts
    assert "  block 0 … block 2: 9 of 9 tensors each, 2,208 parameters each" in parts
    assert "  head: 0 of 1 tensors, frozen" in parts  # of the default LoRA adapter
    adapter, *parts = lines(str(file))
    assert adapter == "LoRA as configured: trains 42 of 72 tensors, 1,488 parameters"
    only = write_config(tmp_path, lora={"rank": 2, "target_modules": ["q_proj"]})
    assert "trains 6 of 36 tensors" in lines(str(only))[0]


def test_it_names_experts_and_what_is_tied(tmp_path: Path) -> None:
    shape = {"vocab_size": 64, "hidden_size": 32, "moe_intermediate_size": 16, "head_dim": 16}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes = Qwen3MoeConfig(**shape, num_experts=4, tie_word_embeddings=True)
    Qwen3MoeForCausalLM(sizes).save_pretrained(tmp_path)
    full = lines(str(tmp_path))
    assert "  embedding (tied to the head): 1 of 1 tensors, 2,048 parameters" in full
    assert any(
        line.startswith("  block 0, experts … block 1, experts: 2 of 2 tensors each")
        for line in full
    )


def test_a_model_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "no such folder" in result.stderr
