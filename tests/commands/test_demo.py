"""The stories of `riprap demo`: small, true, and on a page before the demo trains."""

from __future__ import annotations

import io
import lzma
import urllib.request
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from riprap.commands import demo_folder, demo_page
from riprap.conclusion import conclude
from riprap.record import Reader
from riprap.toy import STORIES, stories_digest, unpack_stories
from tools.demo_stories import SETUPS, make

MAX_BYTES = 300_000


def test_the_stories_are_small_and_say_what_they_should(tmp_path: Path) -> None:
    packed = resources.files("riprap.toy") / "stories"
    assert {own.name for own in packed.iterdir()} == {f"{name}.sqlite.xz" for name in STORIES}
    assert sum(len(own.read_bytes()) for own in packed.iterdir()) < MAX_BYTES
    caught, lost, nothing = (conclude(folder) for folder in unpack_stories(tmp_path))
    assert all(own.finished for own in (caught, lost, nothing))
    assert {str(own.state) for own in caught.outcomes} == {"kept"}
    assert "A guard acted on addition." in caught.line
    broken = {own.name: own.broke for own in lost.outcomes if str(own.state) == "broken"}
    assert broken == {"addition": 20}
    assert "a warning stood since step 3" in lost.line and "AutoGuard" in lost.advice
    assert "raining changed nothing" in nothing.line
    assert {str(own.state) for own in nothing.outcomes} == {"not trained"}
    for folder, title in zip(unpack_stories(tmp_path), STORIES.values(), strict=True):
        with Reader(folder) as reader:
            assert reader.meta()["notes"]["task"] == title
            losses = [e["facts"]["loss"] for e in reader.events() if e["kind"] == "training"]
        assert (losses[-1] < 0.5 * losses[0]) == (folder.name != "nothing-trained")


def test_they_are_unpacked_once(tmp_path: Path) -> None:
    first, *_ = unpack_stories(tmp_path)
    (first / "record.sqlite").write_bytes(b"looked at")
    unpack_stories(tmp_path)
    assert (first / "record.sqlite").read_bytes() == b"looked at"


@pytest.mark.slow
def test_the_command_makes_what_is_shipped(tmp_path: Path) -> None:
    """The first steps of each, again: the same margins, but for what another processor rounds.

    The base is pretrained on this machine, so its margins differ by up to 4 %.
    """
    assert list(SETUPS) == list(STORIES)
    for shipped in unpack_stories(tmp_path / "shipped"):
        made = tmp_path / "made" / shipped.name
        made.mkdir(parents=True)
        (made / "record.sqlite").write_bytes(lzma.decompress(make(shipped.name, steps=6)))
        with Reader(shipped) as old, Reader(made) as new:
            assert new.units("score") == old.units("score")
            for name in old.units("score"):
                before, after = old.margins(name), new.margins(name)
                for step in (0, 1, 2, 3):
                    np.testing.assert_allclose(after[step], before[step], rtol=0.1, atol=0.1)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_page_shows_them_before_the_training(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    with demo_page(demo_folder(tmp_path), console) as address:
        assert address is not None and address in written(console)
        page, _, query = address.partition("?")
        assert query == "show=4"
        texts = []
        for key in (3, 2, 1):  # the page begins with the highest
            with urllib.request.urlopen(f"{page}runs/{key}") as answer:
                texts.append(answer.read().decode())
        for text, title in zip(texts, STORIES.values(), strict=True):
            assert title in text
    with pytest.raises(OSError):
        urllib.request.urlopen(address)


def test_without_the_extra_it_says_how_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riprap.commands._demo.is_installed", lambda name: name != "uvicorn")
    console = Console(file=io.StringIO(), width=200)
    with demo_page(demo_folder(tmp_path), console) as address:
        assert address is None
    assert "pip install 'riprap[dashboard]'" in written(console)
    stories = tmp_path / f"demo-stories-{stories_digest()}"
    assert str(stories) in written(console)
    assert (stories / "the-loss-fell" / "record.sqlite").is_file()


def test_other_stories_have_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    before = stories_digest()
    assert stories_digest() == before
    monkeypatch.setattr("riprap.toy._stories._packed", lambda name: b"of another version")
    assert stories_digest() != before


def test_a_page_that_never_answers_holds_nothing_up_and_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = tmp_path / "deaf"
    deaf.write_text("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.1; done\n")
    deaf.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(deaf))
    monkeypatch.setattr("riprap.commands._demo.START_SECONDS", 0.5)
    monkeypatch.setattr("riprap.commands._demo.STOP_SECONDS", 0.1)
    console = Console(file=io.StringIO(), width=200)
    with (
        pytest.raises(ZeroDivisionError),
        demo_page(demo_folder(tmp_path / "runs"), console) as address,
    ):
        assert address is None and "did not start" in written(console)
        raise ZeroDivisionError
