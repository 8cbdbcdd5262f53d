"""Evals beside a diagnosis: which are refused, and what is said of behaviors and tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.test_compare import evals, task
from report.test_diagnosis_page import kept, made, page
from riprap.commands.diagnose import DiagnoseConfig
from riprap.commands.diagnose._evals import load_changes
from riprap.errors import ConfigError
from riprap.evals import EvalResult, compare_evals
from riprap.record import state_of_weights
from riprap.report import evals_line, evals_of_behavior, write_diagnosis

START, WORSE = [0.0] * 40, [1.0] * 10 + [0.0] * 30


def save(folder: Path, name: str, *tasks: Any, **options: Any) -> Path:
    """Write a model's weights once, and evals of it."""
    model = folder / name
    if not model.is_dir():
        model.mkdir()
        (model / "model.safetensors").write_bytes(name.encode())
    own = replace(evals(*tasks, model=str(model)), weights=state_of_weights(model), **options)
    return own.save(folder / f"{name}.json")


def changes(folder: Path, base: str = "base", tuned: str = "tuned") -> Any:
    given = {"base": str(folder / "base"), "tuned": str(folder / "tuned")}
    given["evals"] = [folder / f"{base}.json", folder / f"{tuned}.json"]  # type: ignore[assignment]
    return load_changes(DiagnoseConfig.parse(given, "test"))


def test_evals_of_both_models_are_compared(tmp_path: Path) -> None:
    save(tmp_path, "base", task("advbench", START, True, "refusal_rules"))
    save(tmp_path, "tuned", task("advbench", WORSE, True, "refusal_rules"))
    (found,) = changes(tmp_path)
    assert found.change == 0.25 and found.outcome == "worse"
    moved = tmp_path / "moved"  # a moved model keeps its weights
    (tmp_path / "base").rename(moved)
    given = {"base": str(moved), "tuned": str(tmp_path / "tuned")}
    given["evals"] = [tmp_path / "base.json", tmp_path / "tuned.json"]  # type: ignore[assignment]
    assert load_changes(DiagnoseConfig.parse(given, "test")) == (found,)


def test_evals_of_another_model_are_refused(tmp_path: Path) -> None:
    base = save(tmp_path, "base", task("advbench", START, True))
    save(tmp_path, "tuned", task("advbench", WORSE, True))
    with pytest.raises(ConfigError, match=r"tuned\.json holds evals of .*, and BASE is"):
        changes(tmp_path, "tuned", "base")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"another")
    with pytest.raises(ConfigError, match="BASE were written anew since"):
        changes(tmp_path)
    save(tmp_path, "base", task("gsm8k", START))
    with pytest.raises(ConfigError, match="no task in common"):
        changes(tmp_path)
    text = base.read_text()
    base.write_text(text[: len(text) // 2])
    with pytest.raises(ConfigError, match="malformed"):
        changes(tmp_path)
    base.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        changes(tmp_path)


def compared(before: EvalResult, after: EvalResult) -> Any:
    return compare_evals(before, after)


def test_what_is_said_of_a_behavior_fits_its_probes_and_its_tasks() -> None:
    lost, fine = made(), kept()
    same = task("xstest_safe", START, True, "refusal_rules")
    before = task("advbench", START, True, "refusal_rules")
    tuned = evals(task("advbench", WORSE, True, "refusal_rules"), same)
    found = tuple(
        replace(own, metric="attack_success") for own in compared(evals(before, same), tuned)
    )
    assert evals_line(found) == "Of 2 tasks of the evals, 1 got worse: advbench."
    text = evals_of_behavior(lost, found)
    assert text.startswith("Evals show the loss too, which confirms the loss and not its cause: ")
    assert "0.000 before, 0.250 now, +0.250 [" in text and "does not refuse is harmful" in text
    assert evals_of_behavior(fine, found).startswith("Evals show no loss either")
    assert "would be missed 1 time in 5" in evals_of_behavior(fine, found)
    assert not evals_of_behavior(replace(fine, name="politeness"), found)
    none = compared(evals(before), evals(before))
    assert evals_of_behavior(lost, none).startswith("Evals do not show the loss")
    assert evals_line(none) == "Of the one task of the evals, none is shown to be worse."
    refused = task("xstest_safe", WORSE, True, "refusal_rules")
    found = compared(evals(same), evals(refused))
    assert evals_of_behavior(fine, found).startswith("Its probes pass, but its tasks got worse")
    unmeasured = replace(fine, probes=0)
    assert evals_of_behavior(unmeasured, found).startswith("Its tasks got worse")
    assert not evals_line(())


@pytest.mark.parametrize("rows", [[1.0] * 3, [0.0] * 40])
def test_too_few_rows_and_nothing_to_lose_tell_nothing(rows: list[float]) -> None:
    kind = [task(name, rows) for name in ("xstest_unsafe", "advbench", "gsm8k")]
    found = compared(evals(*kind), evals(*kind))
    for own in (made(), kept(), replace(kept(), probes=0)):
        own = replace(own, name="refusal")
        assert evals_of_behavior(own, found).startswith("Evals cannot tell whether its tasks got")
        text = evals_of_behavior(replace(own, name="arithmetic"), found)
        assert text.startswith("Evals cannot tell whether related tasks got worse: gsm8k ")
    seen = task("advbench", [1.0] * 40)
    found = compared(evals(*kind[:1], seen), evals(*kind[:1], seen))
    assert evals_of_behavior(replace(kept(), name="refusal"), found).startswith(
        "Evals show no loss"
    )


def test_a_related_task_concludes_less_than_an_own_one() -> None:
    before, after = task("gsm8k", [1.0] * 40), task("gsm8k", [0.0] * 10 + [1.0] * 30)
    found = compared(evals(before), evals(after))
    lost, fine = (replace(own, name="arithmetic") for own in (made(), kept()))
    assert evals_of_behavior(lost, found).startswith("Related tasks got worse too, but they need")
    text = evals_of_behavior(fine, found)
    assert "something else that these tasks need got worse, or the probes do not" in text
    assert evals_of_behavior(replace(fine, probes=0), found).startswith("Related tasks got worse:")


def test_a_missed_loss_is_said_with_the_rows_that_became_better() -> None:
    start, end = [0.0] * 96 + [1.0] * 4, [1.0] * 4 + [0.0] * 96
    same = compared(evals(task("xstest_safe", start, True)), evals(task("xstest_safe", end, True)))
    (own,) = same
    assert (own.worse, own.better, own.outcome) == (4, 4, "not shown to be worse")
    said = (
        f"value of {own.seen_value:.2f} would be missed 1 time in 5, with as many rows better (4)"
    )
    assert said in evals_of_behavior(kept(), same)
    rose = compared(
        evals(task("xstest_safe", [1.0] * 40, True)), evals(task("xstest_safe", [0.0] * 40, True))
    )
    assert "missed" not in evals_of_behavior(kept(), rose)


def test_the_page_has_a_table_of_the_tasks(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    before = evals(task("advbench", START, True), task("gone", [1.0]), task(hostile, [1.0] * 9))
    after = evals(task("advbench", WORSE, True), task(hostile, [1.0] * 9))
    found = compared(before, after)
    own = page(made(), kept())
    text = write_diagnosis(own, tmp_path / "with", found).read_text("utf-8")
    assert "Of 2 tasks of the evals, 1 got worse: advbench." in text
    assert "Evals of both models" in text and "TUNED lacks this task" in text
    assert "decides no verdict" in text and hostile not in text
    without = write_diagnosis(own, tmp_path / "without").read_text("utf-8")
    assert "Evals of both models" not in without
