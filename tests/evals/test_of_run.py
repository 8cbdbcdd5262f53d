"""Evals that lie in a run's folder: which are shown, in which order, and compared with what."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from evals.test_compare import evals, task
from riprap.evals import EvalResult, Outcome, RunEvals, compare_evals, evals_of
from riprap.record import FILE_NAME, state_of_weights

META: dict[str, Any] = {"started": "now", "notes": {"config": {"model": "llama"}}}


def of_checkpoint(result: EvalResult, step: int, folder: Path | None = None) -> EvalResult:
    place = f"trainer/checkpoint-{step}"
    weights = {} if folder is None else state_of_weights(folder / place)
    return replace(result, run={"started": "now", "checkpoint": place, "weights": weights})


def read(folder: Path, meta: dict[str, Any] = META) -> RunEvals:
    return evals_of(folder / FILE_NAME, meta)


def rows(found: RunEvals, name: str) -> list[tuple[str, str, bool]]:
    (table,) = (own for own in found.tables if own.task == name)
    return [(own.model, own.change, own.is_worse) for own in table.cells]


def test_checkpoints_stand_below_the_base_by_their_steps(tmp_path: Path) -> None:
    start, end = [1.0] * 40, [1.0] * 20 + [0.0] * 20
    evals(task("boolq", start), task("advbench", [0.0] * 40, True, "j"), model="llama").save(
        tmp_path / "evals-base" / "evals.json"
    )
    late = evals(task("boolq", end), task("advbench", [0.0] * 40, True, "j"), model="x")
    of_checkpoint(late, 300).save(tmp_path / "evals-late" / "evals.json")
    early = evals(task("boolq", start), model="x")
    of_checkpoint(early, 60).save(tmp_path / "trainer" / "checkpoint-60" / "evals.json")
    nested = tmp_path / "trainer" / "checkpoint-90" / "evals" / "evals.json"
    of_checkpoint(early, 90).save(nested)
    found = read(tmp_path)
    assert [own.task for own in found.tables] == ["boolq", "advbench"] and not found.notes
    assert [name for name, *_ in rows(found, "boolq")] == [
        *("llama", "checkpoint-60", "checkpoint-90", "checkpoint-300")
    ]
    assert rows(found, "boolq")[-1][1].startswith("-0.500 [-0.6")
    assert [own[2] for own in rows(found, "boolq")] == [False, False, False, True]
    assert [own[1] for own in rows(found, "boolq")[:1]] == [""]
    assert [own[0] for own in rows(found, "advbench")] == ["llama", "checkpoint-300"]
    assert found.tables[1].cells[0].judge == "j"


def test_what_is_not_of_the_run_is_said(tmp_path: Path) -> None:
    one = evals(task("boolq", [1.0] * 20), model="x")
    place = tmp_path / "trainer" / "checkpoint-1"
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes(b"1")
    of_checkpoint(one, 1, tmp_path).save(tmp_path / "a" / "evals.json")
    assert [own[0] for own in rows(read(tmp_path), "boolq")] == ["checkpoint-1"]
    (place / "model.safetensors").write_bytes(b"22")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "evals.json").write_text('{"format": "riprap.evals/2", "mod')
    other = replace(one, run={"started": "then", "checkpoint": "c", "weights": {}})
    other.save(tmp_path / "c" / "evals.json")
    replace(one, run={"started": "now"}).save(tmp_path / "d" / "evals.json")
    found = read(tmp_path)
    assert not found.tables
    for name, why in zip(
        "abcd", ("before its weights", "malformed", "another run", "damaged"), strict=True
    ):
        (note,) = (own for own in found.notes if own.startswith(f"{name}/evals.json"))
        assert why in note and str(tmp_path) not in note
    (tmp_path / "link").symlink_to(tmp_path / "e")
    one.save(tmp_path / "e" / "evals.json")
    assert len(rows(read(tmp_path), "boolq")) == 1


def test_the_base_is_known_or_no_change_is_shown(tmp_path: Path) -> None:
    for name in ("one", "two"):
        evals(task("boolq", [1.0] * 20), model=name).save(tmp_path / name / "evals.json")
    found = read(tmp_path, {"started": "now"})
    assert "is not known (one, two)" in found.notes[0]
    assert [own[1] for own in rows(found, "boolq")] == ["", ""]
    evals(task("boolq", [0.0] * 20), model="base").save(tmp_path / "base" / "evals.json")
    found = read(tmp_path, {"started": "now"})
    assert not found.notes and rows(found, "boolq")[0][0] == "base"
    assert rows(found, "boolq")[1][1].startswith("+1.000 ")


def test_a_model_that_the_run_did_not_begin_with_is_no_base(tmp_path: Path) -> None:
    """A merged copy of the tuned model must not become the base."""
    evals(task("boolq", [1.0] * 20), model="merged").save(tmp_path / "evals" / "evals.json")
    of_checkpoint(evals(task("boolq", [0.0] * 20)), 9).save(tmp_path / "late" / "evals.json")
    found = read(tmp_path)
    assert [own[1] for own in rows(found, "boolq")] == ["", ""]
    assert (
        "the run began with llama" in found.notes[0] and "(checkpoint-9, merged)" in found.notes[0]
    )
    found = read(tmp_path, {"started": "now"})
    assert rows(found, "boolq")[1][2] and "Taken for the base: merged" in found.notes[0]
    start = tmp_path / "models" / "llama"
    start.mkdir(parents=True)
    evals(task("boolq", [1.0] * 20), model=str(start / ".." / "llama")).save(
        tmp_path / "evals-base" / "evals.json"
    )
    meta = {"started": "now", "notes": {"config": {"model": str(start)}}}
    found = read(tmp_path, meta)
    assert not found.notes and rows(found, "boolq")[0][0].endswith("llama")
    assert rows(found, "boolq")[1][1].startswith("-1.000 ") and rows(found, "boolq")[1][2]


def test_a_base_whose_weights_were_written_anew_is_not_shown(tmp_path: Path) -> None:
    start = tmp_path / "llama"
    start.mkdir()
    (start / "model.safetensors").write_bytes(b"1")
    own = replace(evals(task("boolq", [1.0]), model=str(start)), weights=state_of_weights(start))
    own.save(tmp_path / "run" / "evals-base" / "evals.json")
    meta = {"started": "now", "notes": {"config": {"model": str(start)}}}
    assert not read(tmp_path / "run", meta).notes
    (start / "model.safetensors").write_bytes(b"22")
    found = read(tmp_path / "run", meta)
    assert not found.tables and "before its weights were written anew" in found.notes[0]


def test_checkpoints_of_one_name_are_told_apart_by_their_places(tmp_path: Path) -> None:
    for place, value in (("a/checkpoint-300", 1.0), ("b/checkpoint-300", 0.0)):
        own = evals(task("boolq", [value] * 20))
        run = {"started": "now", "checkpoint": place, "weights": {}}
        replace(own, run=run).save(tmp_path / place / "evals.json")
    of_checkpoint(evals(task("boolq", [1.0] * 20)), 9).save(tmp_path / "late" / "evals.json")
    (table,) = read(tmp_path).tables
    assert [(own.model, own.value) for own in table.cells] == [
        *(("checkpoint-9", "1.000"), ("a/checkpoint-300", "1.000"), ("b/checkpoint-300", "0.000"))
    ]


def test_outcomes_are_those_of_the_gate(tmp_path: Path) -> None:
    """The level is shared by the tasks of the base: further tasks of a checkpoint take nothing."""
    base = evals(task("boolq", [1.0] * 40), model="llama")
    tuned = evals(task("boolq", [0.0] * 5 + [1.0] * 35), task("gsm8k", [1.0]), task("arc", [1.0]))
    base.save(tmp_path / "base" / "evals.json")
    of_checkpoint(tuned, 9).save(tmp_path / "late" / "evals.json")
    own = compare_evals(base, tuned)[0]
    assert own.outcome is Outcome.WORSE and own.p > 0.05 / 3
    assert rows(read(tmp_path), "boolq")[1][2]


def test_other_settings_are_not_compared_and_the_newest_counts(tmp_path: Path) -> None:
    evals(task("boolq", [1.0] * 20), model="llama", seed=0).save(tmp_path / "a" / "evals.json")
    tuned = of_checkpoint(evals(task("boolq", [1.0] * 20), seed=1), 2)
    file = tuned.save(tmp_path / "b" / "evals.json")
    os.utime(file, (1, 1))
    assert rows(read(tmp_path), "boolq")[1][1] == "not compared: measured differently (seed)"
    again = of_checkpoint(evals(task("boolq", [0.0] * 20), seed=0), 2)
    again.save(tmp_path / "c" / "evals.json")
    assert rows(read(tmp_path), "boolq")[1][1].endswith(", worse")
    failed = replace(task("boolq", [1.0]), scores={}, rows=(), error="no memory")
    of_checkpoint(evals(failed, seed=0), 9).save(tmp_path / "d" / "evals.json")
    assert rows(read(tmp_path), "boolq")[2][1] == "not measured: no memory"
