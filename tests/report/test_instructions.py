"""Instructions of fast–slow training: read from the record, shown in report and live page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from report.synthetic import Scene
from report.test_page import EVIL, Page
from riprap.dashboard._snapshot import conclusion_of
from riprap.record import Reader, Writer, instructions_of
from riprap.report import write_report


def candidate(number: int, text: str, parent: int | None, *scores: Any, kept: bool) -> Any:
    facts = {"id": number, "text": text, "parent": parent, "scores": list(scores)}
    return facts | {"on_front": kept, "kept": kept}


def rejected(text: str, parent: int, scores: list[Any], before: list[Any]) -> Any:
    facts = {"text": text, "parent": parent, "problems": [3, 5]}
    return facts | {"scores": scores, "parent_scores": before}


def add_cycles(writer: Writer, text: str = "Use meters.", at: int = 0) -> None:
    """Add two cycles: the instruction that was given is dropped in the second one."""
    own = {"problems": [3, 5], "rollouts": 9, "proposals": 2, "failures": 0, "error": ""}
    first = own | {
        "candidates": [
            candidate(1, text, 0, 1.0, 0.5, kept=True),
            candidate(0, "", None, 0.25, 0.25, kept=True),
        ],
        "rejected": [rejected("Be brief.", 0, [0.0, None], [0.25, 0.25])],
    }
    second = own | {
        "candidates": [
            candidate(2, "Add.", 1, 1.0, None, kept=True),
            candidate(1, text, 0, 0.5, 0.5, kept=True),
            candidate(0, "", None, 0.0, 0.0, kept=False),
        ],
        "rejected": [rejected("Wait.", 1, [None, None], [0.5, 0.5])],
        "failures": 3,
    }
    for step, facts, spent in ((0, first, 0), (6, second, 48)):
        count = {"training_rollouts": spent, "cycle_rollouts": 9 * (1 + step // 6)}
        writer.add_event(at + step, "fast_cycle", **facts, **count, cycle=1 + step // 6)
    writer.flush()


def test_cycles_are_read_as_instructions(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run")
    add_cycles(writer)
    writer.close()
    with Reader(tmp_path / "run") as reader:
        found = instructions_of(reader.events())
        assert instructions_of(reader.events()[:0]) is None
    assert found is not None
    assert found.steps == {1: 0, 2: 6} and found.population == [2, 1]
    rewards = {number: own.rewards for number, own in found.evaluated.items()}
    assert rewards == {0: {1: 0.25, 2: 0.0}, 1: {1: 0.75, 2: 0.5}, 2: {2: 1.0}}
    assert {number: own.kept for number, own in found.evaluated.items()} == {
        0: [1],
        1: [1, 2],
        2: [2],
    }
    assert [(own.cycle, own.reward, own.parent_reward) for own in found.rejected] == [
        (1, 0.0, 0.25),
        (2, None, None),
    ]
    assert found.sentence == (
        "2 cycles took 18 rollouts. Before the last cycle, the training took 48. New instructions: "
        "2 evaluated on all problems of a cycle, 2 rejected because they did not beat their "
        "parents. 3 calls of the proposer failed."
    )


def test_a_resumed_run_takes_cycles_again(tmp_path: Path) -> None:
    """The checkpoint of step 6 was saved before the cycle of step 6."""
    writer = Writer(tmp_path / "run")
    add_cycles(writer, "Use meters.\nAdd.")
    writer.add_event(6, "resumed")
    writer.flush()
    with Reader(tmp_path / "run") as reader:
        found = instructions_of(reader.events())
    assert found is not None and found.steps == {1: 0} and found.population == [1, 0]
    assert found.evaluated[1].text == "Use meters.\nAdd."
    writer.add_event(6, "resumed")
    add_cycles(writer)
    with Reader(tmp_path / "run") as reader:
        again = instructions_of(reader.events())
    assert again is not None and list(again.steps.values()) == [0, 0, 6]


def test_a_population_that_starts_anew_has_instructions_of_its_own(tmp_path: Path) -> None:
    """The checkpoint of step 6 has no population, so texts are numbered from 0 again."""
    writer = Writer(tmp_path / "run")
    add_cycles(writer)
    writer.add_event(12, "resumed")
    add_cycles(writer, "Wait.", at=12)
    with Reader(tmp_path / "run") as reader:
        found = instructions_of(reader.events())
    writer.close()
    assert found is not None and found.steps == {1: 0, 2: 6, 3: 12, 4: 18}
    own = {
        key: (one.text, one.parent, one.rewards, one.kept) for key, one in found.evaluated.items()
    }
    assert own == {
        0: ("", None, {1: 0.25, 2: 0.0}, [1]),
        1: ("Use meters.", 0, {1: 0.75, 2: 0.5}, [1, 2]),
        2: ("Add.", 1, {2: 1.0}, [2]),
        3: ("", None, {3: 0.25, 4: 0.0}, [3]),
        4: ("Wait.", 3, {3: 0.75, 4: 0.5}, [3, 4]),
        5: ("Add.", 4, {4: 1.0}, [4]),
    }
    assert found.population == [5, 4]
    assert [one.parent for one in found.rejected] == [0, 1, 3, 4]
    assert (found.training_rollouts, found.cycle_rollouts, found.failures) == (96, 36, 6)
    assert found.restarts == [3]
    assert found.sentence.endswith(
        "Cycle 3 began with the population as it was given: training before it is counted up to "
        "cycle 2."
    )


def test_the_report_shows_population_rewards_lineage_and_rejected(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "run", ["refusal"], 12)
    scene.fading("refusal")
    add_cycles(scene.writer, EVIL)
    html = write_report(scene.writer, tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(html)
    text = page.text[page.text.index("Instructions ") :]
    assert "2 cycles took 18 rollouts" in text
    assert "parent mean reward in its last cycle" in text and "reward of the parent" in text
    shown = text.index("Add. 1 1.00 2 2"), text.index(f"{EVIL} 0 0.500 1–2 1–2")
    assert shown[0] < shown[1] < text.index("(none: the problem as it is) none: given 0 1–2 1")
    assert "1 Be brief. 0 0 0.250" in text
    assert "2 Wait. 1 not scored not scored" in text
    assert EVIL not in html
    figures = json.loads(next(own for own in page.scripts if own.startswith("[{")))
    [figure] = [own for own in figures if "mean reward" in json.dumps(own)]
    [values] = figure["datasets"].values()
    drawn = {(row["cycle"], row["id"]): (row["reward"], row["state"]) for row in json.loads(values)}
    assert drawn == {
        (1, 0): (0.25, "kept"),
        (1, 1): (0.75, "kept"),
        (2, 0): (0.0, "not kept"),
        (2, 1): (0.5, "kept"),
        (2, 2): (1.0, "kept"),
    }


def test_a_run_of_cycles_alone_has_a_report(tmp_path: Path) -> None:
    """Instructions evolved without a training, and nothing was measured."""
    scene = Scene(tmp_path / "run", ["refusal"])
    add_cycles(scene.writer)
    page = Page(write_report(scene.writer, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Nothing has been measured" in page.text and "Use meters. 0 0.500" in page.text


def test_a_run_without_cycles_has_no_instructions(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "run", ["refusal"], 12)
    scene.fading("refusal")
    scene.writer.flush()
    html = write_report(scene.writer, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Instructions" not in Page(html).text
    with Reader(tmp_path / "run") as reader:
        assert conclusion_of(reader)["instructions"] is None


def test_the_live_page_gets_the_same(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "run", ["refusal"], 12)
    scene.fading("refusal")
    add_cycles(scene.writer)
    with Reader(tmp_path / "run") as reader:
        found = conclusion_of(reader)["instructions"]
    assert [own["text"] for own in found["population"]] == ["Add.", "Use meters."]
    assert found["cycles"] == [1, 2]
    assert found["rewards"] == [
        {"id": 0, "cycles": [1, 2], "values": [0.25, 0.0], "kept": [1]},
        {"id": 1, "cycles": [1, 2], "values": [0.75, 0.5], "kept": [1, 2]},
        {"id": 2, "cycles": [2], "values": [1.0], "kept": [2]},
    ]
    assert [(own["id"], own["reward"]) for own in found["dropped"]] == [(0, 0.0)]
    assert [(own["text"], own["reward"]) for own in found["rejected"]] == [
        ("Wait.", None),
        ("Be brief.", 0.0),
    ]


def test_the_live_page_draws_the_newest_cycles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riprap.dashboard._snapshot.MAX_CYCLES", 1)
    scene = Scene(tmp_path / "run", ["refusal"], 12)
    add_cycles(scene.writer)
    with Reader(tmp_path / "run") as reader:
        found = conclusion_of(reader)["instructions"]
    assert found["cycles"] == [2, 2]
    assert [(own["id"], own["values"]) for own in found["rewards"]] == [
        (0, [0.0]),
        (1, [0.5]),
        (2, [1.0]),
    ]
