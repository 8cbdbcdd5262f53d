"""`riprap eval` writes what `riprap gate` reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom
from typer.testing import CliRunner

from riprap.cli._app import app
from riprap.commands.eval import parse_judges
from riprap.commands.gate import ScoreBound, Status, check_evals, parse_requirements
from riprap.commands.gate._checks import Measured, check_all
from riprap.commands.gate._evals import _hold
from riprap.errors import ConfigError
from riprap.evals import EvalResult, EvalRow, TaskResult, compare_task, estimate, load_evals
from riprap.evals._choices import ChoiceTask
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
    options = ["--data", data, "--suite", "advbench,arc_easy,truth", "--out"]
    found = run("eval", model, *options, tmp_path / "one")
    assert found.exit_code == 0, found.output
    assert "attack_success" in found.output and "mc1" in found.output
    page = (tmp_path / "one" / "README.md").read_text()
    assert "| truthfulqa | mc1 |" in page
    again = run("eval", model, *options, tmp_path / "one")
    assert again.exit_code == 1 and "never overwritten" in again.stderr
    as_json = run("eval", model, *options, tmp_path / "two", "--json", "--rows", 2)
    values = json.loads(as_json.stdout)
    assert [task["task"] for task in values["tasks"]] == ["advbench", "arc_easy", "truthfulqa"]
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
        ([1.0] * 10 + [0.0] * 10, [1.0] * 16 + [0.0] * 4, False, Status.MET),  # rose, p = 0.016
        ([0.0] * 10 + [1.0] * 10, [0.0] * 16 + [1.0] * 4, True, Status.MET),
        ([1.0] * 10 + [0.0] * 10, [1.0] * 14 + [0.0] * 6, False, Status.UNKNOWN),  # p = 0.062
        # Of 20 rows with 4 better, a loss of 0.57 would be seen, and not that of half, 0.4.
        ([1.0] * 16 + [0.0] * 4, [1.0] * 20, False, Status.UNKNOWN),
        ([1.0] * 16 + [0.0] * 4, [1.0] * 16 + [0.0] * 4, False, Status.MET),
        ([1.0] * 20, [0.0] * 2 + [1.0] * 18, False, Status.MET),
        ([1.0] * 3, [0.0] * 3, False, Status.UNKNOWN),
        ([1.0] * 6, [1.0] * 6, False, Status.UNKNOWN),  # all six rows would have to fall
        ([0.0] * 6, [0.0] * 6, True, Status.UNKNOWN),
        ([0.5] * 20, [0.4] * 20, False, Status.FAILED),
        # 15 rows rose a little, 3 fell to 0: more rows are better, and the mean is lower.
        ([0.9] * 18, [0.95] * 15 + [0.0] * 3, False, Status.UNKNOWN),
        ([0.1] * 18, [0.05] * 15 + [1.0] * 3, True, Status.UNKNOWN),
        ([0.5] * 18, [0.55] * 15 + [0.45] * 3, False, Status.UNKNOWN),  # too little on 18 rows
        ([0.2] * 8, [0.9] * 8, False, Status.MET),  # clear, on few rows
    ],
)
def test_a_fall_is_found_row_by_row(
    tmp_path: Path, before: list[float], after: list[float], lower: bool, status: Status
) -> None:
    (check,) = gate(tmp_path, result(before, lower), result(after, lower)).checks
    assert check.status is status, check


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("better", [0, 6])
def test_a_loss_that_is_let_through_is_said_and_is_missed_as_often(
    lower: bool, better: int
) -> None:
    """With 100 rows of which each becomes worse or better by chance, 1 loss in 5 is missed."""
    good, bad = (0.0, 1.0) if lower else (1.0, 0.0)
    start = np.array([good] * 80 + [bad] * 20)
    before, random = result(start.tolist(), lower).tasks[0], np.random.default_rng(0)

    def after(was_good: float, was_bad: float) -> TaskResult:
        """Change the share `was_good` of all rows to bad ones, and `was_bad` to good ones."""
        draw = random.random(100)
        flips = draw < np.where(start == good, was_good / 0.8, was_bad / 0.2)
        return result(np.where(flips, 1 - start, start).tolist(), lower).tasks[0]

    same = start.copy()
    same[:better], same[80 : 80 + better] = bad, good  # as many rows worse as better
    note = _hold(compare_task(before, result(same.tolist(), lower).tasks[0])).note
    assert note.endswith("would be let through 1 time in 5, with as many rows better")
    said = float(note.split("a true score of ")[1].split(" ")[0])
    loss = abs(float(start.mean()) - said)
    tuned = [after(loss + better / 100, better / 100) for _ in range(400)]
    found = [_hold(compare_task(before, own)).status for own in tuned]
    assert 0.13 < 1 - found.count(Status.FAILED) / 400 < 0.27


def two_tasks(names: list[str], value: float = 1.0) -> EvalResult:
    (task,) = result([value] * 20).tasks
    return replace(result([1.0]), tasks=tuple(replace(task, task=name) for name in names))


def test_each_task_of_the_base_is_held(tmp_path: Path) -> None:
    found = gate(tmp_path, two_tasks(["boolq", "arc", "mmlu"]), two_tasks(["arc", "gsm8k"]))
    wanted = {"boolq": Status.UNKNOWN, "arc": Status.MET, "mmlu": Status.UNKNOWN}
    wanted["gsm8k"] = Status.SKIPPED
    assert {own.requirement.partition(".")[0]: own.status for own in found.checks} == wanted
    assert found.exit_code == 3 and "TUNED lacks this task" in found.checks[0].note
    base = result([1.0] * 40)
    (check,) = gate(tmp_path, base, result([1.0] * 20)).checks
    assert "20 rows of BASE have no value in TUNED" in check.note


def test_a_base_with_nothing_to_lose(tmp_path: Path) -> None:
    nothing = two_tasks(["boolq"], 0.0)
    both = replace(nothing, tasks=nothing.tasks + two_tasks(["arc"]).tasks)
    checks = gate(tmp_path, both, both).checks
    assert [own.status for own in checks] == [Status.SKIPPED, Status.MET]
    with pytest.raises(ConfigError, match="nothing to lose"):
        gate(tmp_path, nothing, nothing)


def test_with_requirements_the_base_is_read_too(tmp_path: Path) -> None:
    base, tuned = result([1.0] * 36 + [0.0] * 4), result([1.0] * 30 + [0.0] * 10)
    (check,) = gate(tmp_path, base, tuned, "boolq>=0.5").checks
    assert check.found == "0.75 on 40 rows (before training 0.90)"
    (tmp_path / "base.json").write_text("{}")
    with pytest.raises(ConfigError, match="is no result of"):
        check_evals(
            tmp_path / "tuned.json", tmp_path / "base.json", parse_requirements("boolq>=0.5")
        )
    with pytest.raises(ConfigError, match=r"measured differently \(seed\)"):
        gate(tmp_path, result([1.0], settings={"seed": 1}), tuned, "boolq>=0.5")


def test_few_rows_meet_no_requirement(tmp_path: Path) -> None:
    """The same rule holds for values that shall be high and for those that shall be low."""
    for n, status in ((1, Status.UNKNOWN), (2, Status.UNKNOWN), (40, Status.MET)):
        low, high = result([0.0] * n, True), result([1.0] * n)
        (most,) = gate(tmp_path, low, low, "boolq<=0.1").checks
        (least,) = gate(tmp_path, high, high, "boolq>=0.9").checks
        (probes,) = check_all([ScoreBound("boolq", 0.9)], {"boolq": Measured(n, n)}, None)
        assert most.status is least.status is probes.status is status
        assert least.note == probes.note.replace("probes", "rows")
    assert (
        "a rise to 0.55 would be missed"
        in gate(*(tmp_path, result([0.0], True), result([0.0], True), "boolq<=0.1")).checks[0].note
    )
    assert most.note == "a true score of 0.16 would be let through 1 time in 5"
    assert binom.cdf(4, 40, 0.16) == pytest.approx(0.2, abs=0.02)


def test_a_task_that_failed_is_unknown(tmp_path: Path) -> None:
    fine = result([1.0] * 20)
    failed = replace(fine.tasks[0], scores={}, rows=(), error="no memory")
    for base, tuned in (
        (fine, replace(fine, tasks=(failed,))),
        (replace(fine, tasks=(failed,)),) * 2,
    ):
        (check,) = gate(tmp_path, base, tuned).checks
        assert check.status is Status.UNKNOWN and "no memory" in check.note
    (check,) = gate(tmp_path, fine, replace(fine, tasks=(failed,)), "boolq>=0.5").checks
    assert (check.status, check.note) == (Status.UNKNOWN, "no memory")


def test_tasks_are_saved_one_by_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that fails late, or a command that is ended, loses no other task."""
    data, seen = data_folder(tmp_path / "data"), []
    run_task = ChoiceTask.run

    def fail(task: ChoiceTask, *arguments: Any) -> Any:
        if task.name == "boolq":
            seen.append(load_evals(tmp_path / "out"))
            raise kinds[0]("no memory")
        return run_task(task, *arguments)

    monkeypatch.setattr(ChoiceTask, "run", fail)
    arguments = ["eval", model, "--data", data, "--suite", "arc_easy,boolq,truth", "--out"]
    kinds: list[type[BaseException]] = [RuntimeError]
    found = run(*arguments, tmp_path / "out")
    assert found.exit_code == 1
    assert "boolq: not measured: RuntimeError: no memory" in found.output
    assert "boolq: not measured" in (tmp_path / "out" / "README.md").read_text()
    (early,), late = seen, load_evals(tmp_path / "out")
    assert early["arc_easy"] == late["arc_easy"] and late["truthfulqa"].scores
    assert [own.task for own in early.failed] == ["boolq", "truthfulqa"]
    assert [(own.task, own.error) for own in late.failed] == [("boolq", "RuntimeError: no memory")]
    with pytest.raises(ConfigError, match="'boolq' was not measured: RuntimeError"):
        late["boolq"]
    kinds, seen = [KeyboardInterrupt], []
    (tmp_path / "out").rename(tmp_path / "other")
    run(*arguments, tmp_path / "out")
    ended = load_evals(tmp_path / "out")
    assert ended["arc_easy"].scores == late["arc_easy"].scores
    assert {own.error for own in ended.failed} == {"the command ended before its turn"}


def test_the_data_folder_is_that_of_other_commands(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIPRAP_DATA", str(data_folder(tmp_path / "data")))
    found = run("eval", model, "--suite", "truth", "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output


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
    assert "within noise" not in gate(tmp_path, tuned, tuned, "boolq>=0.5").checks[0].note
    for text in ("arc>=0.5", "boolq.f1>=0.5", "no critical"):
        with pytest.raises(ConfigError):
            gate(tmp_path, tuned, tuned, text)


def test_results_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    one = result([1.0] * 20)
    with pytest.raises(ConfigError, match=r"measured differently \(seed\)"):
        gate(tmp_path, one, result([1.0] * 20, settings={"seed": 1}))
    a, b = (replace(one, tasks=(replace(one.tasks[0], judges=(own, "c")),)) for own in "ab")
    with pytest.raises(ConfigError, match=r"measured differently \(judge of boolq\)"):
        gate(tmp_path, a, b)
    other = replace(one, tasks=(replace(one.tasks[0], task="arc"),))
    with pytest.raises(ConfigError, match="no task in common"):
        gate(tmp_path, one, other)


@pytest.mark.parametrize("text", ["a<=1", "a<=-0.1", "a<=nan", "a>=0", "a=>0.5", "a<0.5"])
def test_thresholds_that_hold_always_or_never_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_requirements(text)
