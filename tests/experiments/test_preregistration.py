"""Preregistrations: an alert policy and the terms of a study under one hash."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.harness.preregistration import Preregistration, PreregistrationError
from riprap.detectors import AlertPolicy, ForecastDetector

DAY = datetime.date(2026, 11, 22)


def make_preregistration(**changes: Any) -> Preregistration:
    study = {"seeds": [1, 2], "none": None, "nested": {"rate": 0.1, "day": DAY}}
    fields = {"name": "p", "detectors": [ForecastDetector()], "study": study}
    return Preregistration(**(fields | changes))


@pytest.mark.parametrize("study", [None, {"seeds": [1, 3]}])
def test_the_hash_changes_with_the_terms(study: Any) -> None:
    other = make_preregistration(study=study)
    assert other.content_hash() != make_preregistration().content_hash()


def test_the_hash_ignores_the_order_of_the_terms() -> None:
    reordered = {"nested": {"day": DAY, "rate": 0.1}, "none": None, "seeds": [1, 2]}
    other = make_preregistration(study=reordered)
    assert other.content_hash() == make_preregistration().content_hash()


def test_without_terms_the_hash_is_that_of_the_policy() -> None:
    policy = AlertPolicy(name="p", detectors=[ForecastDetector()])
    assert make_preregistration(study=None).content_hash() == policy.content_hash()


def test_an_amended_preregistration_survives_its_file(tmp_path: Path) -> None:
    amended = make_preregistration().freeze().amend("another seed", study={"seeds": [5], "a": None})
    amended.save(tmp_path / "p.yaml")
    assert Preregistration.load(tmp_path / "p.yaml") == amended


def test_terms_that_were_tampered_with_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    make_preregistration().freeze().save(file)
    document = yaml.safe_load(file.read_text())
    document["study"]["seeds"].append(3)
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(PreregistrationError, match=r"was changed after it was frozen.*amend it"):
        Preregistration.load(file)


@pytest.mark.parametrize("name", ["toy", "depth"])
def test_preregistrations_from_before_the_field_declined_still_verify(name: str) -> None:
    preregistration = Preregistration.named(name)
    assert "declined" not in preregistration.detector("forecast").model_dump()
    preregistration.verify()
