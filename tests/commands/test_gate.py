"""A gate lets through what meets its requirements, and says when too little was measured."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from riprap.cli._app import app
from riprap.commands.gate import (
    NoAlert,
    ScoreBound,
    Status,
    check_run,
    parse_requirements,
    to_junit,
)
from riprap.errors import ConfigError
from riprap.record import Writer
from riprap.types import Alert, Level, Reading, ReadingStatus


def run_of(
    folder: Path, ends: dict[str, float], n: int = 100, end: bool = True, **final: float
) -> Path:
    """Write a run whose behaviors all start at 1.0; return its folder."""
    writer = Writer(folder)
    writer.write_meta(behaviors=[{"name": name, "floor": 0.9} for name in ends])
    for name, score in ends.items():
        for step, value in ((0, 1.0), (40, score)):
            margins = np.where(np.arange(n) < round(value * n), 1.0, -1.0)
            writer.add_margins(step, name, margins)
            writer.add_readings([Reading(step, name, "score", round(value * n) / n)])
    for name, value in final.items():
        writer.add_readings([Reading(40, name, "final_score", value)])
    if end:
        writer.add_event(40, "ended", ended="2026-11-30T00:00:00")
    writer.close()
    return folder


def statuses(folder: Path, text: str | None = None) -> list[Status]:
    wanted = None if text is None else parse_requirements(text)
    return [check.status for check in check_run(folder, wanted).checks]


def test_requirements_are_read_from_text() -> None:
    found = parse_requirements("refusal>=0.9,  over refusal >= .8 , no critical")
    assert found == [
        ScoreBound("refusal", 0.9),
        ScoreBound("over refusal", 0.8),
        NoAlert(Level.CRITICAL),
    ]
    assert parse_requirements(", ".join(map(str, found))) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("refusal", "cannot read 'refusal'"),
        ("refusal=0.9", "cannot read"),
        ("refusal>=90", "above 0 and at most 1"),
        ("refusal>=0", "above 0"),
        ("refusal>=nan", "above 0"),
        ("refusal>=high", "not a number"),
        ("no panic", "no alert level: use watch, warning, critical"),
        ("refusal>=0.9, refusal>=0.8", "refusal is required twice"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_requirements(text)


def test_by_default_each_behavior_must_reach_its_floor(tmp_path: Path) -> None:
    assert statuses(run_of(tmp_path / "a", {"x": 0.9, "y": 1.0})) == [Status.MET] * 2
    assert statuses(run_of(tmp_path / "b", {"x": 0.89, "y": 1.0})) == [Status.FAILED, Status.MET]


@pytest.mark.parametrize(
    ("score", "n", "status", "note"),
    [
        (1.0, 100, Status.MET, "a true score of 0.87 would be let through 1 time in 5"),
        (0.91, 100, Status.MET, "within noise"),
        (0.89, 100, Status.FAILED, "within noise"),
        (0.5, 100, Status.FAILED, ""),
        (1.0, 1, Status.UNKNOWN, "too few probes"),
        (0.0, 1, Status.FAILED, ""),
    ],
)
def test_what_a_score_settles_depends_on_its_probes(
    tmp_path: Path, score: float, n: int, status: Status, note: str
) -> None:
    (check,) = check_run(run_of(tmp_path / "run", {"x": score}, n)).checks
    assert check.status is status
    assert note in check.note
    assert bool(note) == bool(check.note)
    low, high = check.interval or (2, -1)
    assert low <= score <= high


def test_the_weights_that_were_loaded_at_the_end_count(tmp_path: Path) -> None:
    assert statuses(run_of(tmp_path / "a", {"x": 0.2}, x=1.0)) == [Status.MET]
    assert statuses(run_of(tmp_path / "b", {"x": 1.0}, x=0.2)) == [Status.FAILED]


def test_what_was_not_measured_to_the_end_is_unknown(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "b", {"x": 1.0, "y": 1.0})
    writer = Writer(folder, resume=True)
    writer.add_readings([Reading(60, "x", "score", 1.0)])
    writer.add_margins(60, "x", np.ones(100))
    writer.add_alert(Alert(60, "y", Level.WARNING, "unmeasured", "no memory was left"))
    writer.add_event(60, "ended", ended="2026-11-30T00:00:00")
    writer.close()
    x, y = check_run(folder).checks
    assert x.status is Status.MET
    assert (y.status, y.note) == (Status.UNKNOWN, "not after step 40: no memory was left")
    assert y.found == "1.00 on 100 probes (before training 1.00), at step 40"


def test_margins_that_are_not_finite_fail(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", {"x": 1.0}, end=False)
    writer = Writer(folder, resume=True)
    text = "10 of 100 margins are not finite"
    writer.add_readings([Reading(60, "x", "margin", state=ReadingStatus.ERROR, detail=text)])
    writer.add_alert(Alert(60, "x", Level.CRITICAL, "not_finite", text))
    writer.add_event(60, "ended", ended="2026-11-30T00:00:00")
    writer.close()
    assert statuses(folder) == [Status.FAILED]


@pytest.mark.parametrize("score", [1.0, 0.5])
def test_of_a_run_that_was_killed_it_says_what_was_measured_until_then(
    tmp_path: Path, score: float
) -> None:
    folder = run_of(tmp_path / "run", {"x": score}, end=False)
    ran = CliRunner().invoke(app, ["gate", str(folder), "--require", "x>=0.9, no critical"])
    assert ran.exit_code == 3
    writer = Writer(folder, resume=True)
    writer.add_alert(Alert(40, "x", Level.CRITICAL, "forecast", "why"))
    writer.close()
    text = " ".join(ran.output.split())
    assert "x>=0.9 unknown" in text and "no critical unknown none stands so far" in text
    share, alert = check_run(folder, parse_requirements("x>=0.9, no critical")).checks
    assert share.found == f"{score:.2f} on 100 probes (before training 1.00), at step 40"
    assert share.interval is not None and share.interval[0] < score <= share.interval[1]
    assert alert.found == "critical on x since step 40"
    for check in (share, alert):
        assert check.status is Status.UNKNOWN
        assert check.note.startswith("the run has not ended")


def test_alerts_that_were_withdrawn_do_not_count(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", {"x": 1.0}, end=False)
    writer = Writer(folder, resume=True)
    writer.add_alert(Alert(20, "x", Level.CRITICAL, "forecast", "why"))
    alerts = [{"step": 20, "level": "critical"}]
    writer.add_event(30, "cleared", behavior="x", detector="forecast", alerts=alerts)
    writer.add_alert(Alert(35, "x", Level.WARNING, "forecast", "why"))
    writer.add_event(40, "ended", ended="2026-11-30T00:00:00")
    writer.close()
    assert statuses(folder, "no critical") == [Status.MET]
    assert statuses(folder, "no warning") == [Status.FAILED]
    assert statuses(folder, "no watch") == [Status.FAILED]


def test_an_unknown_behavior_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", {"x": 1.0})
    with pytest.raises(ConfigError, match=r"'z>=0.5': no such behavior was measured; .*: x"):
        check_run(folder, parse_requirements("z>=0.5"))


def test_the_command_exits_by_the_worst_check_and_writes_junit(tmp_path: Path) -> None:
    good = run_of(tmp_path / "good", {"x": 1.0})
    bad = run_of(tmp_path / "bad", {"x": 0.5, "y": 1.0})
    few = run_of(tmp_path / "few", {"x": 1.0}, n=1)
    codes = [CliRunner().invoke(app, ["gate", str(run)]).exit_code for run in (good, bad, few)]
    assert codes == [0, 2, 3]
    assert CliRunner().invoke(app, ["gate", str(tmp_path / "none")]).exit_code == 1
    file = tmp_path / "out" / "gate.xml"
    shown = CliRunner().invoke(app, ["gate", str(bad), "--json", "--junit", str(file)])
    result = json.loads(shown.stdout)
    assert (result["exit_code"], len(result["checks"])) == (2, 2)
    suite = ElementTree.fromstring(file.read_text())
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    assert [case.find("failure") is not None for case in suite] == [True, False]


def test_hostile_names_stay_text_in_junit(tmp_path: Path) -> None:
    name = "<b>\x1b[31m&\"'"
    suite = ElementTree.fromstring(to_junit(check_run(run_of(tmp_path / "run", {name: 0.1}))))
    assert "<b>\\x1b[31m&\"'>=0.9" in str(suite[0].get("name"))


def test_two_models_have_no_alerts(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["gate", "a", "b", "--require", "no critical"])
    assert shown.exit_code == 1
    assert "needs the record of a run" in shown.stderr


def test_options_of_two_models_are_refused_for_a_run(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", {"x": 1.0})
    shown = CliRunner().invoke(app, ["gate", str(folder), "--n-probes", "12"])
    assert shown.exit_code == 1
    assert "need two models" in shown.stderr
    shown = CliRunner().invoke(app, ["gate", str(folder), "--junit", str(folder)])
    assert shown.exit_code == 1
    assert "cannot write" in shown.stderr


def test_requirements_of_several_options_are_all_checked(tmp_path: Path) -> None:
    folder = str(run_of(tmp_path / "run", {"x": 0.5, "y": 1.0}))
    given = ["gate", folder, "--require", "x>=0.9", "--require", "y>=0.9", "--json"]
    shown = CliRunner().invoke(app, given)
    assert shown.exit_code == 2
    assert len(json.loads(shown.stdout)["checks"]) == 2


def test_two_runs_are_not_taken_for_two_models(tmp_path: Path) -> None:
    folder = str(run_of(tmp_path / "run", {"x": 1.0}))
    shown = CliRunner().invoke(app, ["gate", folder, folder])
    assert shown.exit_code == 1
    assert "gate takes one run" in shown.stderr
