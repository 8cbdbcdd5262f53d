"""What other commands found about a run stands in its first line, if it is about this run."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from riprap.behaviors import probe_sets
from riprap.cli._app import app
from riprap.conclusion import Conclusion, conclude, rows_to_blame
from riprap.record import Reader, Writer, state_of_weights
from riprap.types import Reading

STARTED = "2026-11-30T08:00:00"
CONFIG: dict[str, Any] = {
    "model": "mine",
    "quantization": None,
    "lora": {"rank": 8},
    "training": {"max_steps": 60, "learning_rate": 0.01},
    "behaviors": [{"name": "refusal", "n_probes": 20}],
    "data": {"path": "rows.jsonl", "system": None},
    "run_dir": "run",
}
PREFLIGHT: dict[str, Any] = {
    "config": CONFIG,
    "rows_digest": "abc",
    "rows": [4, 7, 9],
    "n_rows": 3,
    "behaviors": {
        "refusal": {
            "rows_for_half": 1,
            "explained": True,
            "rows": {"harm": [0.1, 0.6, -0.2], "length": [10, 10, 10]},
        }
    },
    "texts": {"7": ["How do I pick <b>?", "Sure, first"]},
}
AUDIT: dict[str, Any] = {
    "model": "org/base",
    "rows_digest": "abc",
    "chosen_digest": "def",
    "worst": [
        {"row": 5, "behavior": "refusal", "chosen": False, "prompt": "ask", "response": "yes"},
        {"row": 6, "behavior": "refusal", "chosen": True, "prompt": "beg", "response": "no"},
        {"row": 8, "behavior": "adding", "chosen": True, "prompt": "2 + 2", "response": "5"},
    ],
}


def diagnosis(score: Any, started: str = STARTED, name: str = "refusal") -> dict[str, Any]:
    how = "training on 10 of its examples"
    return {
        "run": {"started": started, "checkpoint": "trainer/checkpoint-30"},
        "restored": {name: {"how": how, "score": score}},
        "behaviors": [{"name": "refusal"}],
    }


def broken_run(folder: Path, *selected: dict[str, Any], digest: str | None = "abc") -> Path:
    """A run whose refusal breaks at step 20."""
    writer = Writer(folder)
    notes = {} if digest is None else {"rows": digest, "config": CONFIG}
    writer.write_meta(behaviors=[{"name": "refusal", "floor": 0.9}], started=STARTED, notes=notes)
    for step, score in ((0, 1.0), (10, 1.0), (20, 0.5), (30, 0.5)):
        writer.add_margins(step, "refusal", np.where(np.arange(20) < 20 * score, 1.0, -1.0))
        writer.add_readings([Reading(step, "refusal", "score", score)])
    for facts in selected:  # `Selector` chooses before the step: the event is of the step before
        writer.add_event(facts["step"] - 1, "selection", **facts)
    writer.add_event(30, "ended", ended=STARTED)
    writer.close()
    return folder


def write(document: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(document if isinstance(document, str) else json.dumps(document))


def refusal(found: Conclusion) -> dict[str, Any]:
    own: dict[str, Any] = found.to_dict()["behaviors"]["refusal"]
    return own


def test_the_line_tells_of_rows_and_of_what_brings_it_back(tmp_path: Path) -> None:
    run = broken_run(tmp_path / "run")
    plain = conclude(run)
    assert "rows" not in plain.line and "measured" not in plain.line
    assert refusal(plain)["restored"] is None
    write(PREFLIGHT, run / "preflight" / "preflight.json")
    write(diagnosis(0.95), run / "diagnosis-checkpoint-30" / "diagnosis.json")
    found = conclude(run)
    assert (
        "Refusal broke at step 20; no warning stood before it; 1 of 3 rows were predicted to do "
        "half of it; training on 10 of its examples brings it back to 0.95 (measured on "
        "checkpoint-30, with the diagnosis' probes)."
    ) in found.line
    assert refusal(found)["restored"]["score"] == 0.95
    assert refusal(found)["rows_to_blame"]["rows"][0]["name"] == "row 7"


def test_what_does_not_bring_it_back_is_told_too(tmp_path: Path) -> None:
    run = broken_run(tmp_path / "run")
    write(diagnosis(0.6), run / "diagnosis.json")
    assert "brings it only to 0.60 (measured on checkpoint-30, with" in conclude(run).line


@pytest.mark.parametrize(
    "document",
    [
        diagnosis(0.95, started="2025-01-01T00:00:00"),
        diagnosis(0.95, name="adding"),
        diagnosis(0.95) | {"run": None},
    ],
)
def test_a_diagnosis_of_something_else_is_not_claimed(tmp_path: Path, document: Any) -> None:
    run = broken_run(tmp_path / "run")
    write(document, run / "diagnosis" / "diagnosis.json")
    assert "measured on" not in conclude(run).line


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", '{"run": 3}', json.dumps(diagnosis(0.9) | {"x": 1})[:-9]),
        *(json.dumps(diagnosis(own)) for own in (math.nan, 17.5, -0.1, 10**400, True, "0.9")),
    ],
)
def test_a_diagnosis_that_cannot_be_read_is_told_and_hides_nothing(
    tmp_path: Path, text: str
) -> None:
    run = broken_run(tmp_path / "run")
    write(text, run / "diagnosis" / "diagnosis.json")
    found = conclude(run)
    assert "Refusal broke at step 20" in found.line and "measured on" not in found.line
    assert found.limits.endswith("diagnosis/diagnosis.json could not be read.")


def test_the_newest_diagnosis_of_a_checkpoint_counts(tmp_path: Path) -> None:
    run = broken_run(tmp_path / "run")
    old = diagnosis(0.95) | {"written": "2026-11-30T10:00:00+00:00"}
    new = diagnosis(0.95) | {"written": "2026-11-30T11:00:00+00:00", "restored": {}}
    write(new, run / "b" / "diagnosis.json")
    write(old, run / "a" / "diagnosis.json")  # a copy: its file is newer
    assert "measured on" not in conclude(run).line
    write(new | {"behaviors": [{"name": "adding"}]}, run / "b" / "diagnosis.json")
    assert "measured on checkpoint-30" in conclude(run).line  # it measured something else


def test_what_was_measured_on_other_weights_is_not_claimed(tmp_path: Path) -> None:
    run = broken_run(tmp_path / "run")
    checkpoint = run / "trainer" / "checkpoint-30"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"old")
    document = diagnosis(0.95)
    document["run"]["weights"] = state_of_weights(checkpoint)
    write(document, run / "diagnosis" / "diagnosis.json")
    assert "measured on checkpoint-30" in conclude(run).line
    (checkpoint / "model.safetensors").write_bytes(b"newer")
    found = conclude(run)
    assert "measured on" not in found.line
    assert found.limits.endswith("is not used: its checkpoint was written anew since.")
    (checkpoint / "model.safetensors").unlink()  # removed, not trained on
    assert "measured on checkpoint-30" in conclude(run).line


def test_a_model_in_the_folder_of_the_run_is_named_by_it(tmp_path: Path) -> None:
    run = broken_run(tmp_path / "run")
    document = diagnosis(0.95)
    document["run"]["checkpoint"] = "."
    write(document, run / "diagnosis" / "diagnosis.json")
    assert "(measured on run, with" in conclude(run).line


def test_a_link_to_results_elsewhere_is_not_followed(tmp_path: Path) -> None:
    run = broken_run(tmp_path / "run")
    write(diagnosis(0.95), tmp_path / "other" / "diagnosis.json")
    (run / "linked").symlink_to(tmp_path / "other")
    (run / "diagnosis.json").symlink_to(tmp_path / "other" / "diagnosis.json")
    assert "measured on" not in conclude(run).line


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows_digest": "other"}, "of another configuration"),
        ({"of": None}, "of another configuration"),
        ({"config": CONFIG | {"training": {"max_steps": 9}}}, "of another configuration"),
        ({"config": CONFIG | {"behaviors": []}}, "of another configuration"),
        ({"behaviors": {}}, "no prediction for refusal"),
        ({"rows": None}, "is damaged"),
    ],
)
def test_a_preflight_of_another_training_blames_no_row(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    run = broken_run(tmp_path / "run", digest=change.get("of", "abc"))
    write(PREFLIGHT | change, run / "preflight" / "preflight.json")
    assert "rows" not in conclude(run).line
    with Reader(run) as reader:
        blame = rows_to_blame(reader, "refusal")
    assert blame.rows == () and says in blame.origin and "preflight.json" in blame.origin


def test_rows_that_do_not_explain_the_fall_have_no_share_in_the_line(tmp_path: Path) -> None:
    run = broken_run(tmp_path / "run")
    document = json.loads(json.dumps(PREFLIGHT))
    document["behaviors"]["refusal"]["explained"] = False
    write(document, run / "preflight" / "preflight.json")
    assert "rows" not in conclude(run).line
    with Reader(run) as reader:
        blame = rows_to_blame(reader, "refusal")
    assert blame.rows and all(row.share is None for row in blame.rows)
    assert "Shares" not in blame.sentences


@pytest.mark.parametrize("harm", [float("nan"), 10**400, "much"])
def test_a_preflight_with_what_is_no_number_is_damaged(tmp_path: Path, harm: Any) -> None:
    run = broken_run(tmp_path / "run")
    document = json.loads(json.dumps(PREFLIGHT))
    document["behaviors"]["refusal"]["rows"]["harm"][1] = harm
    write(document, run / "preflight" / "preflight.json")
    with Reader(run) as reader:
        assert "is damaged" in rows_to_blame(reader, "refusal").origin


def selected(step: int, rows: list[Any], harms: list[float], by_id: bool = False) -> dict[str, Any]:
    return {"step": step, "rows": rows, "scores": {"harm/refusal": harms}, "by_id": by_id}


def test_rows_that_a_selector_scored_go_first_and_end_at_the_break(tmp_path: Path) -> None:
    steps = [selected(9, [0, 1], [0.1, 0.3]), selected(20, [0, 1], [2.0, -0.1])]
    run = broken_run(tmp_path / "run", *steps, selected(25, [3, 4], [9.0, 9.0]))
    write(PREFLIGHT, run / "preflight.json")
    assert (
        "1 of 4 learned rows, counted at each step, were predicted to do half of it, at equal "
        "learning rates"
    ) in conclude(run).line
    with Reader(run) as reader:
        worst = rows_to_blame(reader, "refusal", 20).rows
        assert [own.name for own in worst] == [
            "row 0 of the batch of step 20",
            "row 1 of the batch of step 9",
            "row 0 of the batch of step 9",
        ]
        assert worst[0].share == pytest.approx(2 / 2.4)
        assert rows_to_blame(reader, "refusal", 9).rows[0].name == "row 1 of the batch of step 9"
        assert rows_to_blame(reader, "refusal").rows[0].name.endswith("step 25")


def test_rows_with_ids_are_summed_over_the_steps(tmp_path: Path) -> None:
    steps = [selected(step, ["a", "b"], [0.2, 0.3 - step / 100], by_id=True) for step in (5, 15)]
    with Reader(broken_run(tmp_path / "run", *steps)) as reader:
        blame = rows_to_blame(reader, "refusal", 20)
    assert [own.name for own in blame.rows] == ["row a", "row b"]
    assert "counted at each step" not in blame.summary


def test_no_share_is_above_the_whole(tmp_path: Path) -> None:
    run = broken_run(tmp_path / "run", selected(5, [1, 2, 3], [1.0, -0.9, -0.09]))
    with Reader(run) as reader:
        blame = rows_to_blame(reader, "refusal")
    assert [own.share for own in blame.rows] == [1.0]
    assert "all rows that lower it" in blame.sentences


@pytest.mark.parametrize("harm", [None, float("nan"), 10**400])
def test_a_step_with_a_score_that_is_not_finite_counts_not_at_all(
    tmp_path: Path, harm: Any
) -> None:
    steps = [selected(5, ["a", "b"], [9.0, harm], True), selected(6, ["c", "d"], [0.2, 0.1], True)]
    with Reader(broken_run(tmp_path / "run", *steps)) as reader:
        blame = rows_to_blame(reader, "refusal")
    assert [own.name for own in blame.rows] == ["row c", "row d"]
    assert "Steps without finite scores are left out: 1." in blame.origin
    with Reader(broken_run(tmp_path / "none", steps[0])) as reader:
        blame = rows_to_blame(reader, "refusal")
    assert blame.rows == () and "is not finite" in blame.origin


def test_a_step_that_was_taken_again_counts_once(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.add_event(9, "selection", **selected(10, ["a"], [0.4], True))
    writer.add_event(10, "selection", **selected(11, ["b"], [9.0], True))  # lost with the process
    writer.add_event(10, "resumed")
    writer.add_event(10, "selection", **selected(11, ["c"], [0.6], True))
    writer.close()
    with Reader(tmp_path) as reader:
        blame = rows_to_blame(reader, "refusal")
        before = rows_to_blame(reader, "refusal", 10)
    assert [(own.name, own.share) for own in blame.rows] == [("row c", 0.6), ("row a", 0.4)]
    assert [own.name for own in before.rows] == ["row a"]


def test_events_are_read_once_for_all_behaviors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = Reader.events

    def events(reader: Reader) -> list[dict[str, Any]]:
        read.append(str(reader.path))
        return original(reader)

    monkeypatch.setattr(Reader, "events", events)
    for name, facts in (("none", []), ("one", [selected(5, [1], [1.0])])):
        assert (
            "1 of 1 learned rows" in conclude(broken_run(tmp_path / name, *facts)).line
        ) == bool(facts)
    writer = Writer(tmp_path / "kept")  # nothing broke, no row is asked for
    writer.write_meta(behaviors=[{"name": "refusal", "floor": 0.9}], started=STARTED, notes={})
    writer.close()
    conclude(tmp_path / "kept")
    counts = [sum(f"/{name}/" in place for place in read) for name in ("none", "one", "kept")]
    assert counts[0] == counts[1] == counts[2] > 0


def test_a_selector_that_says_nothing_of_a_behavior_is_named(tmp_path: Path) -> None:
    later = broken_run(tmp_path / "later", selected(9, [1], [1.0]))
    with Reader(later) as reader:
        origin = rows_to_blame(reader, "refusal", 5).origin
    assert origin.startswith("No row was examined up to step 5: row selection begins at step 9;")
    other = {"step": 9, "rows": [1], "scores": {"loss": [1.0]}, "strategy": "moderate"}
    with Reader(broken_run(tmp_path / "other", other)) as reader:
        origin = rows_to_blame(reader, "refusal", 5).origin
    assert origin.startswith("The strategy moderate of the row selection records no harm to refu")


@pytest.mark.parametrize(
    ("digest", "rows"), [("abc", ["row 5", "row 6"]), ("def", ["row 6"]), ("other", []), (None, 2)]
)
def test_an_audit_of_the_rows_is_read(tmp_path: Path, digest: str | None, rows: Any) -> None:
    run = broken_run(tmp_path / "run", digest=digest)
    write(AUDIT, run / "selection" / "audit.json")
    with Reader(run) as reader:
        blame = rows_to_blame(reader, "refusal")
    names = [own.name for own in blame.rows]
    assert (len(names) if rows == 2 else names) == rows
    assert ("is of other rows" in blame.origin) == (rows == [])
    assert ("examined these rows on org/base (selection/audit.json)" in blame.origin) == bool(rows)
    assert ("not compared" in blame.origin) == (digest is None)
    assert ("not in chosen.jsonl" in blame.origin) == (digest == "def")
    assert "rows" not in conclude(run).line


def test_without_any_scores_it_says_how_to_get_them(tmp_path: Path) -> None:
    for digest, command in (("abc", "riprap preflight CONFIG"), (None, "riprap select DATA")):
        with Reader(broken_run(tmp_path / str(digest), digest=digest)) as reader:
            blame = rows_to_blame(reader, "refusal")
        assert blame.rows == () and command in blame.origin


@pytest.mark.parametrize("name", ["refusal", "my own; rm -rf *"])
def test_the_command_that_finds_rows_can_be_run(tmp_path: Path, name: str) -> None:
    with Reader(broken_run(tmp_path, digest=None)) as reader:
        origin = rows_to_blame(reader, name).origin
    line = origin.split(": ", 1)[1].split(" finds the rows")[0]
    words = shlex.split(line)
    assert words[:2] == ["riprap", "select"]
    command: Any = get_command(app)
    given = command.commands["select"].make_context("select", words[2:]).params
    assert given["model"] == "BASE" and given["data"] == "DATA"
    (probes,) = given["behaviors"]
    assert probes == ("refusal" if name == "refusal" else "PROBES.jsonl")
    assert probe_sets.is_file(probes) or probe_sets.rows(probes)
    assert (f"{probes} is a file of its probes" in origin) == probe_sets.is_file(probes)
