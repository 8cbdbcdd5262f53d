"""The page describes the run, loads nothing, and lets no text become markup."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from report.synthetic import Scene, typical
from riprap.errors import ConfigError, RecordError
from riprap.record import Writer
from riprap.report import write_report
from riprap.report._bundle import json_for_script
from riprap.report._run import load_run
from riprap.types import Action, Alert, Level, Reading

EVIL = "</script><script>document.title='broken out'</script><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """The elements of a page, and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.scripts: list[str] = []
        self.shown: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)
        elif self.tags[-1:] != ["style"]:
            self.shown.append(data)

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"/{tag}")

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.shown))


def page_of(source: Writer | Path, folder: Path) -> Page:
    return Page(write_report(source, folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("page")
    scene = typical(folder / "run")
    scene.writer.close()
    return page_of(folder / "run", folder)


def test_the_page_shows_the_outcome_of_each_behavior(page: Page) -> None:
    assert "toy world under C" in page.text
    assert re.search(r"broken refusal At step 15 the score was 0\.80, under the floor", page.text)
    assert "12 steps before the break" in page.text
    assert re.search(r"kept so far arithmetic The score was at or above", page.text)
    assert re.search(r"never had general knowledge", page.text)
    assert "120 probes" in page.text


def test_the_page_lists_alerts_with_their_causes(page: Page) -> None:
    table = page.text.split("caused by")[1]
    assert re.match(r" 3 refusal critical stands expected to reach its floor in 8 steps", table)
    assert "threshold margin 3.4" in table


def test_the_page_lists_missing_readings_with_reasons(page: Page) -> None:
    section = page.text.split("Not measured, and why")[1]
    assert "NOT_RUN refusal energy ratio no stack of layers was found" in section
    assert "Monitor(..., layer='blocks.1')" in section
    assert "INSUFFICIENT arithmetic" in section
    assert "no break within the horizon" in section


def test_the_page_states_the_facts_of_the_run(page: Page) -> None:
    for fact in ("default", "sha256:0123456789abcdef", "torch 2.13.0", "torch 7", '"lr": 0.001'):
        assert fact in page.text
    assert "still in progress, or was interrupted" in page.text


def test_every_figure_of_the_page_has_a_place_and_a_specification(page: Page) -> None:
    figures = json.loads(next(text for text in page.scripts if text.startswith("[{")))
    assert len(figures) == 1 + 3 + 6  # overview, a lane a behavior, other signals
    assert all(figure["config"]["font"] for figure in figures)


def test_the_page_loads_nothing(page: Page, tmp_path: Path) -> None:
    assert page.links == []
    html = write_report(typical(None).writer, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Content-Security-Policy\" content=\"default-src 'none'" in html
    assert not re.search(r"@import|url\(\s*[\"']?http", html)
    assert 500_000 < len(html) < 2_500_000


def test_no_text_of_the_record_becomes_markup(page: Page, tmp_path: Path) -> None:
    scene = Scene(tmp_path / "run", [EVIL])
    scene.fading(EVIL)
    scene.read(1, EVIL, EVIL, 0.5, layer=EVIL)
    scene.lack(0, EVIL, EVIL, EVIL, "NOT_RUN")
    cause = Reading(1, EVIL, EVIL, 0.5)
    scene.writer.add_alert(Alert(1, EVIL, Level.WATCH, EVIL, EVIL, (cause,)))
    scene.writer.write_meta(task=EVIL, config={EVIL: EVIL}, ended=EVIL, extra=[EVIL])
    found = page_of(tmp_path / "run", tmp_path)
    assert found.tags.count("script") == page.tags.count("script") == 5
    assert "img" not in found.tags
    assert found.text.count("document.title='broken out'") > 10
    figures = json.loads(next(text for text in found.scripts if text.startswith("[{")))
    assert EVIL in json.dumps(figures).replace('\\"', '"')


def test_embedded_json_comes_back_whole_and_never_closes_its_element() -> None:
    value = {"a": "</ScRiPt><!--\u2028&amp;", "b": [1.5, None]}
    text = str(json_for_script(value))
    assert json.loads(text) == value
    assert not set("<>&\u2028") & set(text)


def test_one_behavior_and_no_alert(tmp_path: Path) -> None:
    scene = Scene(None, ["calm"], 40)
    scene.fading("calm", 9.0, 0.001, 8.0)
    scene.writer.write_meta(ended="2026-11-22T21:04:00+00:00")
    found = page_of(scene.writer, tmp_path)
    assert "No alert was raised." in found.text
    assert "ended 2026-11-22 21:04:00" in found.text
    assert "still in progress" not in found.text


def test_ten_behaviors(tmp_path: Path) -> None:
    names = [f"behavior {number}" for number in range(10)]
    scene = Scene(None, names, 30)
    for name in names:
        scene.fading(name)
    found = page_of(scene.writer, tmp_path)
    assert all(found.text.count(name) >= 3 for name in names)
    assert found.tags.count("article") == 10


def test_a_run_that_is_still_written(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "run", ["live"], 12)
    scene.fading("live", 7.0, 0.04, -4.0)
    scene.writer.flush()
    first = page_of(tmp_path / "run", tmp_path)
    assert "weakened live" in first.text
    assert "An alert of level critical has stood since step 3" in first.text
    scene.visit(13, "live", scene.random.normal(-1, 0.1, 50))
    scene.writer.flush()
    assert "broken live At step 13" in page_of(tmp_path / "run", tmp_path).text


@pytest.mark.parametrize("named", [True, False])
def test_an_empty_run_says_so(tmp_path: Path, named: bool) -> None:
    writer = Writer()
    if named:
        writer.write_meta(behaviors=[{"name": "refusal", "floor": 0.9}])
    found = page_of(writer, tmp_path)
    assert "Nothing has been measured in this run yet" in found.text
    assert ("No score was measured" in found.text) == named
    assert "script" not in found.tags


def test_a_run_whose_behaviors_are_not_named_is_shown_by_its_readings(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "first run")
    for step, score in ((0, 1.0), (5, 0.5)):
        writer.add_readings([Reading(step, "adding", "margin", 1.0, "logits")])
        writer.add_readings([Reading(step, "adding", "score", score)])
    found = page_of(writer, tmp_path)
    assert "broken adding At step 5" in found.text
    assert "first run" in found.text


def test_an_earlier_report_is_replaced_and_no_other_file(tmp_path: Path) -> None:
    Writer(tmp_path / "run").close()
    page, notes = tmp_path / "report.html", tmp_path / "notes.txt"
    first = write_report(tmp_path / "run", page).read_text(encoding="utf-8")
    assert write_report(tmp_path / "run", page).read_text(encoding="utf-8") == first
    notes.write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt is no page of Riprap, and is left"):
        write_report(tmp_path / "run", notes)
    assert notes.read_text() == "mine"


def test_no_record_no_page(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no record at"):
        write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_it_says_what_the_guard_did(page: Page, tmp_path: Path) -> None:
    assert "What the guard did" not in page.text
    scene = typical(tmp_path / "run")
    done = "removed 42% of the gradient's component against refusal"
    for step in (3, 4):
        scene.writer.add_action(Action(step, "gem", "gradients", True, done))
    scene.writer.add_action(Action(9, "rollback", "visit", False, EVIL))
    scene.writer.close()
    own = page_of(tmp_path / "run", tmp_path)
    assert f"gem changed 2 steps (the last, step 4: {done})." in own.text
    assert "rollback said after step 9" in own.text
    assert "img" not in own.tags


def test_alerts_about_the_run_come_first(tmp_path: Path) -> None:
    """The last one of each kind, before the outcomes."""
    scene = Scene(tmp_path / "run", ["refusal", "adding"])
    scene.fading("refusal")
    for step in (20, 40):
        text = f"1 of {step} trained tensors has a gradient"
        scene.writer.add_alert(Alert(step, "", Level.WARNING, "not_training", text))
    scene.writer.add_alert(
        Alert(60, "adding", Level.WARNING, "unmeasured", "no score since step 40")
    )
    html = write_report(scene.writer, tmp_path / "page.html").read_text(encoding="utf-8")
    first = html.index("1 of 40 trained tensors")
    assert first < html.index("Outcome of each behavior")
    assert html.index("since step 40") < html.index("Outcome of each behavior")
    assert html.index("1 of 20 trained tensors") > html.index("Outcome of each behavior")


def test_the_training_loss_is_shown(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "run", ["refusal"])
    scene.fading("refusal")
    for step, loss in ((10, 2.5), (20, 1.25), (30, float("nan"))):
        scene.writer.add_event(step, "training", loss=loss, learning_rate=1e-3)
    html = write_report(scene.writer, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "the training loss" in html
    losses = dict(load_run(scene.writer).values("", "loss"))
    assert math.isnan(losses.pop(30)) and losses == {10: 2.5, 20: 1.25}
    assert r"{\"step\":30,\"value\":null" in html  # a gap in the line


def test_rows_to_blame_are_shown_or_how_to_get_them(tmp_path: Path) -> None:
    scene = typical(tmp_path / "run", 60)
    scene.writer.flush()
    plain = Page(write_report(scene.writer, tmp_path / "plain.html").read_text("utf-8"))
    assert "Rows to blame" in plain.text and "No row was examined: riprap select" in plain.text
    scores = {"harm/refusal": [3.0, 1.0]}
    facts = {"step": 5, "rows": ["<b>3", "4"], "by_id": True, "scores": scores}
    scene.writer.add_event(5, "selection", **facts)
    scene.writer.close()
    text = write_report(tmp_path / "run", tmp_path / "page.html").read_text("utf-8")
    shown = Page(text)
    assert "1 of 2 learned rows were predicted to do half of it, at equal learning" in shown.text
    assert "row <b>3" in shown.text and "75.0%" in shown.text and "row <b>3" not in text
    first = shown.text.index("1 of 2 learned rows were predicted")
    assert first < shown.text.index("Rows to blame")  # the first line has it too
