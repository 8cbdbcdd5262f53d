"""Results as eval logs of inspect_ai: their structure, and what its own reader finds in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from riprap.evals import EvalResult, EvalRow, TaskResult, estimate, to_inspect


def result() -> EvalResult:
    shown = {"request": "is it red", "answer": "yes", "target": "no"}
    rows = tuple(
        EvalRow(f"key{at}", {"accuracy": value}, shown) for at, value in enumerate((1.0, 0.0, 0.0))
    )
    fine = TaskResult("boolq", {"accuracy": estimate([1.0, 0.0, 0.0])}, False, rows, seconds=7.5)
    hidden = (EvalRow("h", {"attack_success": 1.0}, {"request": "how to"}),)
    judged = TaskResult(
        *("advbench", {"attack_success": estimate([1.0])}, True, hidden),
        judges=("refusal_rules",),
    )
    failed = TaskResult("gsm8k", {}, False, (), error="no memory")
    return EvalResult("llama", (fine, judged, failed), settings={"seed": 0})


def logs(folder: Path) -> dict[str, Any]:
    files = to_inspect(result(), folder)
    found = [json.loads(file.read_text()) for file in files]
    return {own["eval"]["task"]: own for own in found}


def test_a_task_is_a_log_with_its_rows_as_samples(tmp_path: Path) -> None:
    found = logs(tmp_path)
    assert [own["version"] for own in found.values()] == [2, 2, 2]
    assert [own["status"] for own in found.values()] == ["success", "success", "error"]
    boolq = found["boolq"]
    assert [own["id"] for own in boolq["samples"]] == ["key0", "key1", "key2"]
    sample = boolq["samples"][0]
    assert (sample["input"], sample["target"]) == ("is it red", "no")
    assert sample["output"]["choices"][0]["message"]["content"] == "yes"
    assert [own["scores"]["accuracy"]["value"] for own in boolq["samples"]] == [1, 0, 0]
    (score,) = boolq["results"]["scores"]
    metrics = {name: own["value"] for name, own in score["metrics"].items()}
    assert metrics["mean"] == pytest.approx(1 / 3)
    assert metrics["stderr"] == pytest.approx(1 / 3)  # of 1, 0, 0
    assert metrics["low"] < 1 / 3 < metrics["high"]
    assert "not stored" in found["advbench"]["samples"][0]["output"]["completion"]
    assert found["gsm8k"]["error"]["message"] == "no memory"
    assert "stats" not in boolq and boolq["eval"]["metadata"]["seconds"] == 7.5


def test_a_second_export_replaces_the_first(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    to_inspect(result(), tmp_path)
    files = to_inspect(result(), tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*files, tmp_path / "mine.json"])
    other = to_inspect(replace(result(), model="other"), tmp_path)
    assert not set(other) & set(files) and all(file.is_file() for file in files)


def test_its_own_reader_opens_them(tmp_path: Path) -> None:
    reader = pytest.importorskip("inspect_ai.log")
    for file in to_inspect(result(), tmp_path):
        log = reader.read_eval_log(str(file))
        own = next(task for task in result().tasks if task.task == log.eval.task)
        assert [sample.id for sample in log.samples] == [row.key for row in own.rows]
        for sample, row in zip(log.samples, own.rows, strict=True):
            assert {name: score.value for name, score in sample.scores.items()} == row.values
            assert sample.output.completion and sample.input == row.shown["request"]
