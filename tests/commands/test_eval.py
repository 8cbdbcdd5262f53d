"""`riprap eval` writes what `riprap gate` reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from riprap.cli._app import app
from riprap.commands.eval import parse_judges
from riprap.commands.gate import Status, check_evals, parse_requirements
from riprap.errors import ConfigError
from riprap.evals import EvalResult, EvalRow, TaskResult, estimate
from small_evals import data_folder
from tiny import make_llama, make_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make_llama().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_model_is_evaluated_and_gated(model: Path, tmp_path: Path) -> None:
    data = data_folder(tmp_path / "data")
    options = ["--data", data, "--suite", "advbench,truth", "--out"]
    found = run("eval", model, *options, tmp_path / "one")
    assert found.exit_code == 0, found.output
    assert "attack_success" in found.output and "mc1" in found.output
    page = (tmp_path / "one" / "README.md").read_text()
    assert "| truthfulqa | mc1 |" in page
    again = run("eval", model, *options, tmp_path / "one")
    assert again.exit_code == 1 and "never overwritten" in again.stderr
    as_json = run("eval", model, *options, tmp_path / "two", "--json", "--rows", 2)
    values = json.loads(as_json.stdout)
    assert [task["task"] for task in values["tasks"]] == ["advbench", "truthfulqa"]
    gate = run("gate", tmp_path / "one", tmp_path / "two")
    assert gate.exit_code == 3, gate.output  # two and three rows are too few
    gate = run("gate", tmp_path / "one", "--require", "advbench<=0.99, truthfulqa.mc2>=0.001")
    first = json.loads((tmp_path / "one" / "evals.json").read_text())["tasks"][0]
    measured = first["scores"]["attack_success"]["value"]
    assert gate.exit_code == (0 if measured <= 0.99 else 2), gate.output
    assert run("gate", tmp_path / "one").exit_code == 1


def test_what_cannot_be_evaluated_is_said(model: Path, tmp_path: Path) -> None:
    found = run("eval", model, "--suite", "fun", "--data", tmp_path, "--out", tmp_path / "o")
    assert found.exit_code == 1 and "neither a suite" in found.stderr
    found = run("eval", model, "--data", tmp_path, "--out", tmp_path / "o")
    assert found.exit_code == 1 and "cannot be read" in found.stderr
    found = run("eval", model, "--judge", "gpt", "--out", tmp_path / "o")
    assert found.exit_code == 1 and "there is no judge" in found.stderr
    assert not (tmp_path / "o").exists()


def test_judges_are_made_from_texts(tmp_path: Path) -> None:
    (judge,) = parse_judges(["refusal_rules"], tmp_path)
    assert judge.name == "refusal_rules"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"uncensorbench_refusals\.jsonl cannot be read"):
        parse_judges(["refusal_detector"], tmp_path)
    with pytest.raises(ConfigError, match=r"--judge-prompt .* cannot be read"):
        parse_judges(["harmbench=x"], tmp_path, tmp_path / "none.txt")
    with pytest.raises(ConfigError, match="classifier cannot be made"):
        parse_judges(["classifier"], tmp_path)


def result(values: list[float], lower: bool = False, **options: Any) -> EvalResult:
    rows = tuple(EvalRow(str(at), {"accuracy": value}) for at, value in enumerate(values))
    task = TaskResult("boolq", {"accuracy": estimate(values)}, lower, rows)
    return replace(EvalResult("m", (task,), settings={"seed": 0}), **options)


def gate(tmp_path: Path, base: EvalResult, tuned: EvalResult, text: str | None = None) -> Any:
    files = base.save(tmp_path / "base.json"), tuned.save(tmp_path / "tuned.json")
    wanted = None if text is None else parse_requirements(text)
    return check_evals(files[1], files[0], wanted)


@pytest.mark.parametrize(
    ("before", "after", "lower", "status"),
    [
        ([1.0] * 20, [1.0] * 20, False, Status.MET),
        ([1.0] * 20, [0.0] * 6 + [1.0] * 14, False, Status.FAILED),
        ([0.0] * 20, [1.0] * 6 + [0.0] * 14, True, Status.FAILED),
        ([0.0] * 20, [1.0] * 6 + [0.0] * 14, False, Status.MET),
        ([1.0] * 20, [0.0] * 2 + [1.0] * 18, False, Status.MET),
        ([1.0] * 3, [0.0] * 3, False, Status.UNKNOWN),
        ([0.5] * 20, [0.4] * 20, False, Status.FAILED),
    ],
)
def test_a_fall_is_found_row_by_row(
    tmp_path: Path, before: list[float], after: list[float], lower: bool, status: Status
) -> None:
    (check,) = gate(tmp_path, result(before, lower), result(after, lower)).checks
    assert check.status is status, check


def test_requirements_name_a_task_or_a_metric(tmp_path: Path) -> None:
    tuned = result([1.0] * 30 + [0.0] * 10)
    for text, status in (
        ("boolq>=0.5", Status.MET),
        ("boolq.accuracy>=0.8", Status.FAILED),
        ("boolq<=0.5", Status.FAILED),
        ("boolq<=0.75", Status.MET),
    ):
        (check,) = gate(tmp_path, tuned, tuned, text).checks
        assert check.status is status and check.interval is not None, text
    assert gate(tmp_path, tuned, tuned, "boolq>=0.8").checks[0].note == "within noise"
    assert gate(tmp_path, tuned, tuned, "boolq>=0.5").checks[0].note == ""
    for text in ("arc>=0.5", "boolq.f1>=0.5", "no critical"):
        with pytest.raises(ConfigError):
            gate(tmp_path, tuned, tuned, text)


def test_results_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    one = result([1.0] * 20)
    with pytest.raises(ConfigError, match=r"measured differently \(seed\)"):
        gate(tmp_path, one, result([1.0] * 20, settings={"seed": 1}))
    with pytest.raises(ConfigError, match=r"measured differently \(judge\)"):
        gate(tmp_path, replace(one, judges=("a",)), replace(one, judges=("b",)))
    other = replace(one, tasks=(replace(one.tasks[0], task="arc"),))
    with pytest.raises(ConfigError, match="no task in common"):
        gate(tmp_path, one, other)


@pytest.mark.parametrize("text", ["a<=1", "a<=-0.1", "a<=nan", "a>=0", "a=>0.5", "a<0.5"])
def test_thresholds_that_hold_always_or_never_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_requirements(text)
