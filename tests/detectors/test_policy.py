"""Alert policies: frozen under the hash of their content, verified, and amended."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from riprap.detectors import AlertPolicy, ForecastDetector, SlopeDetector, Threshold
from riprap.errors import PolicyError
from riprap.types import Level

DAY = datetime.date(2026, 11, 22)


def threshold(**changes: Any) -> Threshold:
    return Threshold(**{"signal": "score", "side": "below", "value": 0.9} | changes)


def made(**changes: Any) -> AlertPolicy:
    detectors = [ForecastDetector(), SlopeDetector(), threshold()]
    return AlertPolicy(**{"name": "p", "detectors": detectors} | changes)


CHANGES: dict[str, dict[str, Any]] = {
    "name": {"name": "q"},
    "a threshold": {"detectors": [ForecastDetector(), SlopeDetector(), threshold(value=0.91)]},
    "a level": {"detectors": [ForecastDetector(), SlopeDetector(), threshold(level="critical")]},
    "a default": {"detectors": [ForecastDetector(horizon=51), SlopeDetector(), threshold()]},
    "order": {"detectors": [SlopeDetector(), ForecastDetector(), threshold()]},
    "one less": {"detectors": [ForecastDetector(), threshold()]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_hash_changes_with_the_content(change: str) -> None:
    assert made(**CHANGES[change]).content_hash() != made().content_hash()


def test_the_hash_changes_with_nothing_else() -> None:
    policy = made()
    plain = policy.content_hash()
    assert made().content_hash() == plain
    assert policy.freeze().content_hash() == plain
    assert made(hash="something").content_hash() == plain
    amended = policy.freeze().amend("x", name="q").amend("y", name="p")
    assert amended.terms_hash() == plain != amended.content_hash()


def test_freezing_writes_the_hash_and_leaves_the_original() -> None:
    policy = made()
    frozen = policy.freeze()
    assert (policy.hash, frozen.hash) == (None, policy.content_hash())
    assert frozen.freeze() == frozen
    frozen.verify()


def test_what_was_never_frozen_does_not_verify() -> None:
    with pytest.raises(PolicyError, match="policy 'p' is not frozen"):
        made().verify()
    with pytest.raises(PolicyError, match="not frozen"):
        made().amend("why not")


def test_a_frozen_policy_survives_its_file(tmp_path: Path) -> None:
    frozen = (
        made()
        .freeze()
        .amend(
            "a longer horizon",
            detectors=[ForecastDetector(horizon=60), SlopeDetector(), threshold()],
        )
    )
    frozen.save(tmp_path / "p.yaml")
    loaded = AlertPolicy.load(tmp_path / "p.yaml")
    assert loaded == frozen
    assert loaded.detectors[2] == threshold()
    assert [type(detector) for detector in loaded.detectors] == [
        ForecastDetector,
        SlopeDetector,
        Threshold,
    ]


def test_a_policy_that_is_not_frozen_survives_its_file(tmp_path: Path) -> None:
    made().save(tmp_path / "p.yaml")
    loaded = AlertPolicy.load(tmp_path / "p.yaml")
    assert loaded.hash is None
    assert loaded.content_hash() == made().content_hash()


TAMPERING: dict[str, Callable[[dict[str, Any]], object]] = {
    "a threshold": lambda d: d["detectors"][2].update(value=0.5),
    "a level": lambda d: d["detectors"][2].update(level="critical"),
    "the name": lambda d: d.update(name="better"),
    "a detector": lambda d: d["detectors"].pop(),
    "the hash": lambda d: d.update(hash="0" * 64),
}


@pytest.mark.parametrize("tampering", TAMPERING)
def test_a_file_that_was_tampered_with_is_refused(tampering: str, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    made().freeze().save(file)
    document = yaml.safe_load(file.read_text())
    TAMPERING[tampering](document)
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(PolicyError, match=r"was changed after it was frozen.*amend it instead"):
        AlertPolicy.load(file)


@pytest.mark.parametrize("change", ["strike", "reason", "unseal"])
def test_an_amendment_cannot_be_struck_out(change: str, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    made().freeze().amend("noise was larger", name="q").save(file)
    document = yaml.safe_load(file.read_text())
    if change == "strike":
        document["amendments"] = []
    elif change == "reason":
        document["amendments"][0]["reason"] = "noise was smaller"
    else:
        document["amendments"][0]["sealed"] = False
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(PolicyError, match="was changed after it was frozen"):
        AlertPolicy.load(file)


def test_freezing_again_does_not_hide_a_change() -> None:
    changed = made().freeze().model_copy(update={"name": "better"})
    with pytest.raises(PolicyError, match="was changed after it was frozen"):
        changed.freeze()


def test_an_amendment_stores_old_hash_date_and_reason() -> None:
    frozen = made().freeze()
    once = frozen.amend("noise was larger", DAY, detectors=[ForecastDetector(horizon=80)])
    twice = once.amend("a better name", datetime.date(2026, 12, 1), name="q")
    once.verify()
    twice.verify()
    assert len({frozen.hash, once.hash, twice.hash}) == 3
    assert [(a.date, a.reason, a.old_hash) for a in twice.amendments] == [
        (DAY, "noise was larger", frozen.hash),
        (datetime.date(2026, 12, 1), "a better name", once.hash),
    ]
    assert twice.detectors == (ForecastDetector(horizon=80),)
    assert frozen.amendments == ()


def test_an_amendment_is_dated_today_by_default() -> None:
    before = datetime.datetime.now(datetime.UTC).date()
    dated = made().freeze().amend("x", name="q").amendments[0].date
    assert before <= dated <= datetime.datetime.now(datetime.UTC).date()


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_an_amendment_needs_a_reason(reason: str) -> None:
    with pytest.raises(PolicyError, match="amendment of policy 'p' needs a reason"):
        made().freeze().amend(reason, name="q")


def test_history_cannot_be_amended_away() -> None:
    once = made().freeze().amend("first", DAY, name="q")
    twice = once.amend("second", DAY, name="r", amendments=[], hash="0" * 64)
    assert [a.reason for a in twice.amendments] == ["first", "second"]
    twice.verify()


def test_a_malformed_amendment_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"amendment of 'p': unknown key 'detector'.*detectors"):
        made().freeze().amend("x", detector=[])


DOCUMENT: dict[str, Any] = {"name": "p", "detectors": [{"kind": "forecast", "horizon": 40}]}
MALFORMED: dict[str, tuple[Any, str]] = {
    "key": (DOCUMENT | {"detecters": []}, "unknown key 'detecters'; did you mean 'detectors'"),
    "key within": (
        DOCUMENT | {"detectors": [{"kind": "forecast", "horizn": 40}]},
        r"unknown key 'detectors\.0\.forecast\.horizn'; did you mean 'horizon'",
    ),
    "missing": ({"name": "p"}, "key 'detectors' is missing"),
    "none": (DOCUMENT | {"detectors": []}, "'detectors': .*at least 1"),
    "kind": (DOCUMENT | {"detectors": [{"kind": "oracle"}]}, r"'detectors\.0': .*oracle"),
    "value": (
        DOCUMENT | {"detectors": [{"kind": "forecast", "horizon": 0}]},
        r"'detectors\.0\.forecast\.horizon': .*greater than or equal to 1, got 0",
    ),
    "list": ([DOCUMENT], "expected a mapping, got list"),
    "nothing": (None, "expected a mapping, got NoneType"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    document, words = MALFORMED[case]
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(PolicyError, match=rf"broken\.yaml: {words}") as refusal:
        AlertPolicy.load(file)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_not_yaml_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("name: [p\ndetectors: }")
    with pytest.raises(PolicyError, match=r"broken\.yaml is not valid YAML: ") as refusal:
        AlertPolicy.load(file)
    assert "\n" not in str(refusal.value)


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    file = tmp_path / "evil.yaml"
    file.write_text(f"name: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'touched'}]")
    with pytest.raises(PolicyError, match="not valid YAML"):
        AlertPolicy.load(file)
    assert not (tmp_path / "touched").exists()


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"cannot read .*nowhere\.yaml"):
        AlertPolicy.load(tmp_path / "nowhere.yaml")


def test_a_policy_that_is_not_shipped_is_refused() -> None:
    with pytest.raises(PolicyError, match="no policy 'defualt'; available: default"):
        AlertPolicy.named("defualt")


def test_a_detector_is_found_by_its_kind() -> None:
    assert made().detector("threshold") == threshold(level=Level.WARNING)
    with pytest.raises(PolicyError, match="policy 'p' has no detector of kind 'cusum'"):
        made().detector("cusum")


def test_the_default_is_shipped() -> None:
    default = AlertPolicy.default()
    assert default.name == "default"
    assert default.detector("probe_trend")
