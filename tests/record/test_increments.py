"""Windows of a record: thinned, they keep each spike; pieces add up to the whole."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from riprap.record import Reader, Window, Writer, margins_at, numbers_from_facts, position
from riprap.types import Action, Alert, Level, Reading


def whole(reader: Reader, size: int = 1) -> Window:
    until = position(reader)
    return Window(reader, dict.fromkeys(until, 0), until, size)


def written(folder: Path | None, values: dict[int, float], name: str = "a") -> Writer:
    writer = Writer(folder)
    writer.write_meta(behaviors=[{"name": name, "floor": 0.9}])
    writer.add_readings([Reading(step, name, "margin", value) for step, value in values.items()])
    writer.flush()
    return writer


@pytest.mark.parametrize("size", [2, 7, 100, 1000])
def test_a_thinned_line_keeps_first_last_smallest_and_largest(size: int) -> None:
    random = np.random.default_rng(size)
    values = {step: float(random.normal()) for step in range(500)}
    values |= {123: -50.0, 321: 50.0}
    with Reader(written(None, values)) as reader:
        line = whole(reader, size).readings(["margin"])["a", "margin"]
    assert line.items() <= values.items()
    assert list(line) == sorted(line)
    assert len(line) <= 4 * (500 // size + 1)
    for start in range(0, 500, size):
        part = [values[step] for step in range(start, min(start + size, 500))]
        kept = [value for step, value in line.items() if start <= step < start + size]
        expected = (part[0], part[-1], min(part), max(part))
        assert (kept[0], kept[-1], min(kept), max(kept)) == expected


@pytest.mark.parametrize("size", [1, 100])
def test_a_number_that_is_not_finite_is_a_gap_and_the_others_stay(size: int) -> None:
    writer = written(None, {0: 1.0})
    losses = {1: 2.5, 2: math.nan, 3: math.inf, 4: -math.inf, 5: 1.5, 6: 1.75}
    for step, loss in losses.items():
        writer.add_event(step, "training", loss=loss, learning_rate=1e-3)
    with Reader(writer) as reader:
        facts = reader.events()[1]["facts"]
        found = whole(reader, size).training(["loss", "learning_rate"])
        assert list(found["loss"])[:2] == [1, 2] and math.isnan(found["loss"][2])
        assert found["loss"][5] == 1.5 and found["loss"][6] == 1.75
        assert found["learning_rate"][6] == 1e-3
        assert len(found["learning_rate"]) == (6 if size == 1 else 2)
    assert facts == {"loss": None, "learning_rate": 1e-3, "not_finite": {"loss": "nan"}}
    assert math.isnan(numbers_from_facts(facts)["loss"])


def test_a_number_that_an_earlier_version_wrote_as_nan_is_a_gap() -> None:
    writer = written(None, {0: 1.0})
    add = "INSERT INTO events (step, kind, facts) VALUES (?, 'training', ?)"
    for step, text in ((1, "2.5"), (2, "NaN"), (3, "-Infinity")):
        writer.connection.execute(add, (step, f'{{"loss": {text}, "learning_rate": 0.5}}'))
    with Reader(writer) as reader:
        found = whole(reader).training(["loss", "learning_rate"])
    assert found["learning_rate"] == {1: 0.5, 2: 0.5, 3: 0.5}
    assert found["loss"][1] == 2.5 and math.isnan(found["loss"][2]) and math.isnan(found["loss"][3])


def test_pieces_add_up_to_the_whole() -> None:
    writer = written(None, {0: 1.0})
    with Reader(writer) as reader:
        middle = position(reader)
        writer.add_readings([Reading(1, "a", "margin", 2.0), Reading(1, "a", "score", 0.5)])
        writer.add_margins(1, "a", np.array([1.0, -1.0]))
        writer.add_alert(Alert(1, "a", Level.WARNING, "d", "m"))
        writer.add_action(Action(1, "g", "update", True))
        writer.add_event(1, "training", loss=0.25, other="x")
        writer.flush()
        new = Window(reader, middle, position(reader))
        assert new.readings(["margin", "score"]) == {
            ("a", "margin"): {1: 2.0},
            ("a", "score"): {1: 0.5},
        }
        assert whole(reader).readings(["margin"]) == {("a", "margin"): {0: 1.0, 1: 2.0}}
        assert [(name, step, list(m)) for name, step, m in new.margins()] == [("a", 1, [1.0, -1.0])]
        assert [(own["step"], own["level"]) for own in new.alerts()] == [(1, "warning")]
        assert [(own["guard"], own["count"]) for own in new.actions()] == [("g", 1)]
        assert new.training(["loss", "other"]) == {"loss": {1: 0.25}}
        assert new.last_step() == 1
        end = position(reader)
        nothing = Window(reader, end, end)
        assert (nothing.readings(["margin"]), nothing.alerts(), nothing.training(["loss"])) == (
            {},
            [],
            {},
        )


def test_steps_that_were_taken_again_count_once() -> None:
    writer = written(None, {0: 1.0})
    at = writer.position()
    writer.add_readings([Reading(5, "a", "margin", 9.0)])
    writer.add_event(5, "training", loss=9.0)
    writer.resume_from(2, at)
    writer.add_readings([Reading(5, "a", "margin", 3.0)])
    writer.add_event(5, "training", loss=3.0)
    writer.flush()
    with Reader(writer) as reader:
        assert whole(reader).readings(["margin"]) == {("a", "margin"): {0: 1.0, 5: 3.0}}
        assert whole(reader).training(["loss"]) == {"loss": {5: 3.0}}


def test_a_loss_that_is_no_number_is_left_out() -> None:
    writer = written(None, {0: 1.0})
    for step, loss in enumerate([1.0, float("nan"), None, "2", True, 3]):
        writer.add_event(step, "training", loss=loss)
    writer.flush()
    with Reader(writer) as reader:
        losses = whole(reader).training(["loss"])["loss"]
    assert math.isnan(losses.pop(1)) and losses == {0: 1.0, 5: 3}


@pytest.mark.parametrize("name", ["a\0b", "'; DROP TABLE readings; --", "模型"])
def test_a_behavior_may_have_any_name(name: str) -> None:
    with Reader(written(None, {0: 1.0, 1: 2.0}, name)) as reader:
        assert whole(reader).readings(["margin"]) == {(name, "margin"): {0: 1.0, 1: 2.0}}


def test_margins_at_a_step_are_those_of_the_evaluation_before() -> None:
    writer = written(None, {0: 1.0})
    for step in (0, 10, 20):
        writer.add_margins(step, "a", np.array([float(step)]))
    writer.flush()
    with Reader(writer) as reader:
        assert [(at, m.tolist()) for at, m in margins_at(reader, "a", 19)] == [
            (0, [0.0]),
            (10, [10.0]),
        ]
        assert margins_at(reader, "b", 19) == []
