"""Configuration files: an invalid one is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from riprap._config import StrictModel, read_yaml
from riprap.errors import ConfigError, PolicyError


class Inner(StrictModel):
    renamed = {"lr": "learning_rate"}  # noqa: RUF012

    learning_rate: float
    names: tuple[str, ...] = ()


class Outer(StrictModel):
    title: str
    inner: Inner
    several: tuple[Inner, ...] = ()


GOOD = {"title": "t", "inner": {"learning_rate": 0.1}}


def test_a_good_document_is_read() -> None:
    parsed = Outer.parse(GOOD, "here.yaml")
    assert (parsed.title, parsed.inner.learning_rate) == ("t", 0.1)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (GOOD | {"titel": 1}, "here.yaml: unknown key 'titel'; did you mean 'title'?"),
        (
            {"title": "t", "inner": {"learning_rate": 1, "learning_rat": 2}},
            "here.yaml: unknown key 'inner.learning_rat'; did you mean 'learning_rate'?",
        ),
        (
            GOOD | {"several": [{"learning_rate": 1}, {"learning_rate": 1, "name": []}]},
            "here.yaml: unknown key 'several.1.name'; did you mean 'names'?",
        ),
        (
            GOOD | {"zzz": 1},
            "here.yaml: unknown key 'zzz'; the keys here are title, inner, several",
        ),
        (
            {"title": "t", "inner": {"lr": 1}},
            "here.yaml: key 'inner.lr' is now 'learning_rate'",
        ),
        ({"title": "t"}, "here.yaml: key 'inner' is missing"),
        ({"title": "t", "inner": {}}, "here.yaml: key 'inner.learning_rate' is missing"),
        ("text", "here.yaml: expected a mapping, got str"),
        (
            {"title": "t", "inner": {"learning_rate": "fast"}},
            "here.yaml: 'inner.learning_rate': Input should be a valid number, unable to parse "
            "string as a number, got 'fast'",
        ),
    ],
)
def test_a_bad_document_is_refused_in_one_sentence(document: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Outer.parse(document, "here.yaml")
    assert str(refusal.value) == sentence


def test_the_caller_chooses_the_kind_of_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError):
        Outer.parse({}, "here.yaml", PolicyError)
    with pytest.raises(PolicyError):
        read_yaml(tmp_path / "nowhere.yaml", PolicyError)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a: [1", "is not valid YAML"), (b"\xff\xfe\xfa", "cannot read"), (b"a: !x 1", "not valid")],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "file.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as refusal:
        read_yaml(file)
    assert "file.yaml" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_yaml(tmp_path)


def test_a_misspelt_key_is_named_before_the_one_it_leaves_missing() -> None:
    class Training(StrictModel):
        learning_rate: float

    with pytest.raises(
        ConfigError, match=r"unknown key 'learning_rat'; did you mean 'learning_rate'"
    ):
        Training.parse({"learning_rat": 1e-4}, "run.yaml")
