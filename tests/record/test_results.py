"""Results beside a record: found, written whole, attributed to a run only where they lie in one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from riprap.commands._out import result_folder
from riprap.conclusion import conclude
from riprap.errors import ConfigError
from riprap.record import (
    DIAGNOSIS,
    Writer,
    results_of_run,
    run_of_model,
    save_result,
    state_of_results,
)

NOBODY = 65534


@pytest.fixture
def as_user() -> Iterator[Path]:
    """A folder whose locked folders may not be entered, also where tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        folder, is_root = Path(name), os.geteuid() == 0
        Writer(folder / "run").close()
        (folder / "run" / "locked").mkdir()
        conclude(folder / "run")  # imports what it needs
        if is_root:
            for place in (folder, *folder.rglob("*")):
                os.chown(place, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        (folder / "run" / "locked").chmod(0)
        yield folder / "run"
        (folder / "run" / "locked").chmod(0o700)
        if is_root:
            os.seteuid(0)


def test_a_folder_that_may_not_be_entered_hides_nothing_else(as_user: Path) -> None:
    with pytest.raises(PermissionError):
        (as_user / "locked" / "record.sqlite").lstat()
    save_result({"a": 1}, as_user / "diagnosis" / DIAGNOSIS)
    assert results_of_run(as_user, DIAGNOSIS) == [as_user / "diagnosis" / DIAGNOSIS]
    assert conclude(as_user).line
    assert run_of_model(as_user / "locked" / "model") is None


def test_a_result_that_goes_while_it_is_looked_for_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_result({}, tmp_path / "a" / DIAGNOSIS)
    save_result({}, tmp_path / "b" / DIAGNOSIS)
    original = Path.lstat

    def lstat(file: Path) -> os.stat_result:
        if file.parent.name == "a":
            file.unlink(missing_ok=True)
        return original(file)

    monkeypatch.setattr(Path, "lstat", lstat)
    assert results_of_run(tmp_path, DIAGNOSIS) == [tmp_path / "b" / DIAGNOSIS]


def test_a_result_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / DIAGNOSIS
    save_result({"is": "old"}, file)
    before = state_of_results(tmp_path)

    def cut_off(path: Path, text: str, **_: object) -> None:
        with path.open("w") as opened:
            opened.write(text[:5])
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", cut_off)
        with pytest.raises(ConfigError, match="no space left"):
            save_result({"is": "new"}, file)
    assert json.loads(file.read_text()) == {"is": "old"}
    assert state_of_results(tmp_path) == before
    save_result({"is": "newer"}, file)
    assert state_of_results(tmp_path) != before


def test_a_name_of_the_hub_lies_in_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Writer(tmp_path).close()
    (tmp_path / "trainer" / "checkpoint-3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("smollm2", "org/model", "x" * 5000):
        assert run_of_model(Path(name)) is None
    assert run_of_model(Path("trainer/checkpoint-3")) == tmp_path
    assert run_of_model(Path()) == tmp_path


def test_a_folder_that_may_not_be_written_is_refused_before_the_work(as_user: Path) -> None:
    as_user.chmod(0o500)
    for out in (as_user / "diagnosis", as_user / "locked" / "a" / "b"):
        with pytest.raises(ConfigError, match="no folder in which you may write"):
            result_folder(out, DIAGNOSIS)
    as_user.chmod(0o700)
    assert result_folder(as_user / "diagnosis", DIAGNOSIS) == as_user / "diagnosis"
