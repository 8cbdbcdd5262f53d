"""The record keeps what it was given, exactly, whatever happens to its writer."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from riprap.errors import RecordError
from riprap.record import FILE_NAME, Reader, Writer, to_dataframe
from riprap.types import Action, Alert, Forecast, Level, Reading, ReadingStatus

READINGS = [
    Reading(0, "refusal", "margin", 0.1 + 0.2, "logits"),
    Reading(1, "", "norm_gradient", 1e-300),
    Reading(2, "ünïcode 行为", "projection_ratio", -math.pi, "ratio", layer="model.layers.9"),
    Reading(3, "refusal", "energy_ratio", state=ReadingStatus.NOT_RUN, detail="name a layer"),
    Reading(4, "refusal", "margin", state=ReadingStatus.ERROR, detail="value is nan"),
]
ALERTS = [
    Alert(
        3, "refusal", Level.CRITICAL, "forecast", "soon", tuple(READINGS), Forecast(8, 6, 11, 50)
    ),
    Alert(4, "", Level.WATCH, "slope", "perhaps", (), Forecast(math.inf, 30.5, math.inf, 50)),
    Alert(5, "refusal", Level.WARNING, "threshold", "low"),
]


@pytest.fixture(params=["file", "memory"])
def writer(request: pytest.FixtureRequest, tmp_path: Path) -> Writer:
    return Writer(tmp_path / "run" if request.param == "file" else None)


def test_readings_come_back_as_they_were(writer: Writer) -> None:
    writer.add_readings(READINGS)
    assert Reader(writer).readings() == READINGS


def test_alerts_come_back_as_they_were(writer: Writer) -> None:
    for alert in ALERTS:
        writer.add_alert(alert)
    assert Reader(writer).alerts() == ALERTS


def test_margins_come_back_bit_by_bit(writer: Writer) -> None:
    first = np.array([1.5, -0.1, math.nan, -math.inf, 1e-42], dtype=np.float32)
    second = np.random.default_rng(0).normal(size=257).astype(np.float32)
    writer.add_margins(0, "refusal", first)
    writer.add_margins(7, "refusal", second)
    writer.add_margins(7, "adding", second[:3])
    back = Reader(writer).margins("refusal")
    assert list(back) == [0, 7]
    assert back[0].tobytes() == first.tobytes()
    assert back[7].tobytes() == second.tobytes()


def test_facts_come_back_as_they_were(writer: Writer) -> None:
    facts = {"seeds": {"torch": 7}, "task": "</script>", "behaviors": [{"name": "a", "floor": 0.9}]}
    writer.write_meta(**facts)
    assert Reader(writer).meta() == facts | {"format_version": 2}


def test_numbers_of_numpy_are_taken_as_numbers(writer: Writer) -> None:
    odd = Reading(np.int64(3), "refusal", "margin", np.float32(0.5))
    writer.add_readings([odd])
    writer.flush()
    assert Reader(writer).readings() == [Reading(3, "refusal", "margin", 0.5)]


def test_a_table_has_no_value_where_nothing_was_measured() -> None:
    frame = to_dataframe(READINGS)
    assert frame["value"].isna().tolist() == [False, False, False, True, True]
    assert frame["state"].tolist()[-2:] == ["NOT_RUN", "ERROR"]


def test_a_fact_is_written_once(writer: Writer) -> None:
    writer.write_meta(task="first")
    with pytest.raises(RecordError, match=r"already holds 'task' = 'first'"):
        writer.write_meta(other=1, task="second")
    assert Reader(writer).meta() == {"format_version": 2, "task": "first"}


def test_the_file_is_in_wal_mode(tmp_path: Path) -> None:
    Writer(tmp_path)
    mode = sqlite3.connect(tmp_path / FILE_NAME).execute("PRAGMA journal_mode").fetchone()
    assert mode == ("wal",)


@pytest.mark.parametrize("name", ["meta", "readings", "margins", "alerts", "actions"])
@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM {name}",
        "UPDATE {name} SET rowid = rowid + 100",
        "REPLACE INTO {name} SELECT * FROM {name}",
        "INSERT OR REPLACE INTO {name} SELECT * FROM {name}",
    ],
)
def test_what_is_written_cannot_be_changed(tmp_path: Path, name: str, change: str) -> None:
    writer = Writer(tmp_path)
    writer.add_readings(READINGS)
    writer.add_margins(0, "refusal", np.ones(3))
    writer.add_alert(ALERTS[0])
    writer.add_action(
        Action(1, "replay", "update", True, "a share of 0.25", {"A": -1.0}, {"A": 0.5}, 0.1)
    )
    writer.flush()
    query = f"SELECT * FROM {name}"
    before = writer.connection.execute(query).fetchall()
    assert before
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        writer.connection.execute(change.format(name=name))
    assert writer.connection.execute(query).fetchall() == before


def test_an_existing_record_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.add_readings(READINGS)
    writer.close()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(RecordError, match="never overwritten: give another run_dir"):
        Writer(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RecordError, match=r"cannot write a record at .*file"):
        Writer(tmp_path / "file" / "run")


def test_a_failed_commit_says_so_and_drops_nothing(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.connection.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writer.add_readings(READINGS)
    with pytest.raises(RecordError, match="locked"):
        writer.flush()
    other.execute("ROLLBACK")
    writer.flush()
    assert Reader(tmp_path).readings() == READINGS


def test_no_record_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RecordError, match=r"no record at .*: expected a run's folder"):
            Reader(path)


def test_a_folder_of_runs_names_the_runs_below_it(tmp_path: Path) -> None:
    Writer(tmp_path / "runs" / "one").close()
    with pytest.raises(RecordError, match=r"name the run below it: .*runs/one$"):
        Reader(tmp_path / "runs")
    for number in range(2, 8):
        Writer(tmp_path / "runs" / f"number-{number}").close()
    with pytest.raises(RecordError, match=r"name one of the runs below it: .*, and more$") as told:
        Reader(tmp_path)
    assert str(told.value).count("runs/") == 5


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to be read " * 99])
def test_a_file_that_is_no_record(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(RecordError, match="is not a readable record"):
        Reader(tmp_path)


def test_a_database_of_something_else(tmp_path: Path) -> None:
    file = tmp_path / "other.sqlite"
    with sqlite3.connect(file) as other:
        other.execute("CREATE TABLE meta (key TEXT, value TEXT)")
        other.execute("INSERT INTO meta VALUES ('title', 'not json')")
    with pytest.raises(RecordError, match="has record format None; this Riprap reads 1 and 2"):
        Reader(file)


def test_a_record_of_another_version(tmp_path: Path) -> None:
    Writer(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as file:
        file.execute("DROP TRIGGER meta_no_update")
        file.execute("UPDATE meta SET value = '3' WHERE key = 'format_version'")
    with pytest.raises(RecordError, match="has record format 3; this Riprap reads 1 and 2"):
        Reader(tmp_path)


def test_a_record_damaged_later_is_reported_as_such(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    with Reader(tmp_path) as reader:
        writer.connection.execute("DROP TABLE readings")
        with pytest.raises(RecordError, match="no such table: readings"):
            reader.readings()


def test_reading_never_writes(tmp_path: Path) -> None:
    Writer(tmp_path)
    with Reader(tmp_path) as reader, pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.connection.execute("INSERT INTO meta VALUES ('a', '1')")


def test_closing_a_reader_leaves_its_writer_open() -> None:
    writer = Writer()
    with Reader(writer):
        pass
    writer.add_readings(READINGS)
    assert Reader(writer).readings() == READINGS


def test_rows_are_not_held_back_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("riprap.record._writer.time.monotonic", lambda: clock[0])
    writer = Writer(tmp_path)
    writer.add_readings(READINGS[:1])
    assert Reader(tmp_path).readings() == []
    clock[0] += 0.6
    writer.add_readings(READINGS[1:2])
    assert Reader(tmp_path).readings() == READINGS[:2]


def test_the_alert_is_readable_without_riprap(tmp_path: Path) -> None:
    Writer(tmp_path).add_alert(ALERTS[0])
    with sqlite3.connect(tmp_path / FILE_NAME) as file:
        readings, forecast = file.execute("SELECT readings, forecast FROM alerts").fetchone()
    assert json.loads(forecast) == {"median": 8, "low": 6, "high": 11, "horizon": 50}
    assert json.loads(readings)[0]["signal"] == "margin"


def test_a_forecast_is_json_that_any_parser_takes(tmp_path: Path) -> None:
    open_end = Forecast(math.inf, 30.5, math.inf, 50)
    writer = Writer(tmp_path)
    writer.add_alert(Alert(4, "b", Level.WATCH, "forecast", "perhaps", (), open_end))
    writer.close()
    with sqlite3.connect(tmp_path / "record.sqlite") as file:
        (text,) = file.execute("SELECT forecast FROM alerts").fetchone()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(text, parse_constant=refuse)["median"] is None
    with Reader(tmp_path) as reader:
        assert reader.alerts()[0].forecast == open_end


def test_the_earlier_name_of_a_detector_is_read_as_the_present_one() -> None:
    writer = Writer()
    writer.add_alert(Alert(2, "a", Level.CRITICAL, "finite", "m"))
    alerts = [{"step": 2, "level": "critical"}]
    writer.add_event(3, "cleared", behavior="a", detector="finite", alerts=alerts)
    with Reader(writer) as reader:
        assert [alert.detector for alert in reader.alerts()] == ["not_finite"]
        assert reader.withdrawals() == {0: 3}
