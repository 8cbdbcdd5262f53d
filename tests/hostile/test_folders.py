"""Run folders: any name that the system takes works, others are refused; nothing is overwritten."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from riprap.errors import RecordError, RiprapError
from riprap.record import FILE_NAME, Reader, Writer
from riprap.report import write_report
from riprap.types import Alert, Level, Reading

NAMES = [
    *("a b", "a?mode=rw", "a#b", "a%20b", "%00", "%2e%2e", "a&mode=memory", "file:x", ":memory:"),
    *(
        "naïve 模型 🪨",
        "\u202egnp.exe",
        "a\nb",
        "a\tb",
        "-rf",
        "~",
        "a'b\"c",
        "a;DROP TABLE meta",
        "*",
    ),
    *("..", "sub/../other", "./x", "a\\b", "x" * 255, "\x1b[31mred", os.fsdecode(b"\xff\xfe")),
]


def write(folder: Path, steps: int = 3) -> None:
    writer = Writer(folder)
    writer.write_meta(behaviors=[{"name": "refusal", "floor": 0.9}])
    for step in range(steps):
        writer.add_readings([Reading(step, "refusal", "score", 1.0)])
        writer.add_margins(step, "refusal", [1.0, 2.0])  # type: ignore[arg-type]
    writer.add_alert(Alert(1, "refusal", Level.WATCH, "test", "look", (Reading(1, "", "x", 1.0),)))
    writer.close()


def everything(folder: Path) -> dict[str, bytes]:
    """All files by name, whatever they are, with what is in them."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def unchanged(folder: Path, before: dict[str, bytes]) -> None:
    """Nothing that was there has changed; SQLite may have put files of its own beside it."""
    after = everything(folder)
    assert {name: after.get(name) for name in before} == before
    assert all(
        name.endswith(("sqlite", "-shm", "-wal", "lock")) for name in set(after) - set(before)
    )


def refused(call: Callable[[], object], text: str = "") -> None:
    with pytest.raises(RiprapError, match=text) as raised:
        call()
    assert 0 < len(str(raised.value)) < 20_000
    assert "\n" not in str(raised.value).replace("a\nb", "")


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_holds_its_record(name: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    write(base / name)
    assert (base / name / FILE_NAME).is_file()  # and not at what a part of the name may mean
    with Reader(base / name) as reader:
        assert len(reader.readings()) == 3
        assert reader.meta()["behaviors"][0]["name"] == "refusal"
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.connection.execute("INSERT INTO meta VALUES ('a', 'b')")
    page = write_report(base / name, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "refusal" in page
    made = list(tmp_path.rglob(FILE_NAME))
    assert [path.resolve() for path in made] == [(base / name / FILE_NAME).resolve()]


@pytest.mark.parametrize("name", ["x" * 256, "x/" * 2500, "a\x00b", "taken", "taken/deeper"])
def test_a_name_that_cannot_be_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    before = everything(tmp_path)
    refused(lambda: Writer(tmp_path / name), "cannot write a record at")
    refused(lambda: Reader(tmp_path / name))
    refused(lambda: write_report(tmp_path / name, tmp_path / "report.html"))
    unchanged(tmp_path, before)


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is read-only to root")
def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "run")
    (tmp_path / "run").chmod(0o500)
    refused(lambda: Writer(tmp_path / "run" / "deeper"), "cannot write a record at")
    with Reader(tmp_path / "run") as reader:
        assert len(reader.readings()) == 3


def test_a_link_to_a_folder_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link")
    with Reader(tmp_path / "real") as reader:
        assert len(reader.readings()) == 3


@pytest.mark.parametrize("content", [None, b"", b"precious", b"SQLite format 3\x00"])
def test_a_record_that_is_a_link_is_not_written_through(
    content: bytes | None, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if content is not None:
        (tmp_path / "target").write_bytes(content)
    (run / FILE_NAME).symlink_to(tmp_path / "target")
    before = everything(tmp_path)
    for resume in (False, True):
        refused(lambda: Writer(run, resume=resume), "is a link to another file")  # noqa: B023
    refused(lambda: Reader(run))
    unchanged(tmp_path, before)


def test_a_report_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    write(tmp_path / "run")
    (tmp_path / "target").write_text("precious")
    (tmp_path / "run" / "report.html").symlink_to(tmp_path / "target")
    refused(lambda: write_report(tmp_path / "run", tmp_path / "run" / "report.html"), "is a link")
    assert (tmp_path / "target").read_text() == "precious"


@pytest.mark.parametrize("name", [".", "run/record.sqlite/x", "a\x00b", "x" * 256])
def test_a_report_that_cannot_be_written_is_refused(name: str, tmp_path: Path) -> None:
    write(tmp_path / "run")
    before = everything(tmp_path)
    refused(lambda: write_report(tmp_path / "run", tmp_path / name), "cannot write the report to")
    unchanged(tmp_path, before)


def altered(folder: Path, *statements: str) -> None:
    """Change a record by force: its triggers off, then anything goes."""
    with closing(sqlite3.connect(folder / FILE_NAME)) as file:
        for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            file.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            file.execute(statement)
        file.commit()
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def as_bytes(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / FILE_NAME).write_bytes(content) and None


def cut(left: int) -> Callable[[Path], None]:
    def shorten(folder: Path) -> None:
        file = folder / FILE_NAME
        file.write_bytes(file.read_bytes()[:left])

    return shorten


def by(*statements: str) -> Callable[[Path], None]:
    return lambda folder: altered(folder, *statements)


BROKEN = {
    "text": as_bytes(b"just some text, longer than a header would be, " * 50),
    "zeros": as_bytes(bytes(8192)),
    "header": as_bytes(b"SQLite format 3\x00" + bytes(84)),
    "cut 100": cut(100),
    "cut 4096": cut(4096),
    "cut 9000": cut(9000),
    "cut end": cut(-4096),
    "future": by("UPDATE meta SET value = '99' WHERE key = 'format_version'"),
    "no version": by("DELETE FROM meta"),
    "no json": by("UPDATE meta SET value = '{' WHERE key = 'behaviors'"),
    "no facts": by("DROP TABLE meta"),
    "no readings": by("DROP TABLE readings"),
    "no margins": by("DROP TABLE margins"),
    "no alerts": by("DROP TABLE alerts"),
    "other columns": by("DROP TABLE readings", "CREATE TABLE readings (a, b)"),
    "a view": by("DROP TABLE readings", "CREATE VIEW readings AS SELECT 1 AS id, 2 AS step"),
    "state": by("UPDATE readings SET state = 'MAYBE'"),
    "value": by("UPDATE readings SET value = 'much'"),
    "infinite": by("UPDATE readings SET value = 9e999"),
    "no value": by("UPDATE readings SET value = NULL"),
    "step": by("UPDATE readings SET step = 'first'"),
    "blob": by("UPDATE readings SET behavior = x'ff00'"),
    "no text": by("UPDATE readings SET behavior = CAST(x'fffe' AS TEXT)"),
    "odd margins": by("UPDATE margins SET margins = x'000102'"),
    "text margins": by("UPDATE margins SET margins = 'none'"),
    "level": by("UPDATE alerts SET level = 'meh'"),
    "causes": by("UPDATE alerts SET readings = '[{}]'"),
    "causes 2": by("UPDATE alerts SET readings = '3'"),
    "forecast": by('UPDATE alerts SET forecast = \'{"median": "x"}\''),
    "forecast 2": by("UPDATE alerts SET forecast = '[1]'"),
    "behaviors": by("UPDATE meta SET value = '3' WHERE key = 'behaviors'"),
    "behaviors 2": by("UPDATE meta SET value = '[[]]' WHERE key = 'behaviors'"),
    "name": by("UPDATE meta SET value = '[{\"name\": 3}]' WHERE key = 'behaviors'"),
    "floor": by(
        'UPDATE meta SET value = \'[{"name": "a", "floor": NaN}]\' WHERE key = \'behaviors\''
    ),
    "deep": by(f"UPDATE meta SET value = '{'[' * 50000}' WHERE key = 'behaviors'"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_no_record_is_refused_and_left_as_it_is(how: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run)
    BROKEN[how](run)
    before = everything(tmp_path)
    refused(lambda: write_report(run, tmp_path / "report.html"), "record|damaged")
    assert not (tmp_path / "report.html").exists()
    refused(lambda: Writer(run), str(run))
    unchanged(tmp_path, before)


def test_an_empty_file_is_a_record_that_was_never_begun(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    with pytest.raises(RecordError, match="not a readable record"):
        Reader(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == b""
    write(tmp_path)
    assert len(Reader(tmp_path).readings()) == 3


@pytest.mark.parametrize("what", ["text", "folder", "link"])
def test_a_lock_that_is_none_is_not_written_to(what: str, tmp_path: Path) -> None:
    lock = tmp_path / "run" / "record.lock"
    lock.parent.mkdir()
    (tmp_path / "target").write_text("precious, and longer than a header: " * 9)
    {
        "text": lambda: lock.write_text("precious, and longer than a header: " * 9),
        "folder": lock.mkdir,
        "link": lambda: lock.symlink_to(tmp_path / "target"),
    }[what]()
    before = everything(tmp_path)
    writer = Writer(tmp_path / "run")
    refused(lambda: writer.write_meta(a=1), "record")
    unchanged(tmp_path, before)


@pytest.mark.slow
def test_facts_of_any_shape_are_shown(tmp_path: Path) -> None:
    shapes = [None, 3, "x", [], [1], {}, {"a": [1]}, [None], True, 1e300, {"": ""}]
    for index, shape in enumerate(shapes):
        run = tmp_path / f"{index}"
        write(run)
        value = json.dumps(shape)
        keys = ("protocol", "versions", "seeds", "notes", "started", "protocol_hash", "task", "x")
        altered(run, *(f"INSERT INTO meta VALUES ('{key}', '{value}')" for key in keys))
        page = write_report(run, tmp_path / "report.html")
        assert "refusal" in page.read_text(encoding="utf-8")
