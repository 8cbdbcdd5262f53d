"""Untrusted text stays text: in pages, figures, terminals and tables."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console
from typer.testing import CliRunner

from experiments.harness import markdown
from report.synthetic import HORIZON, Scene
from report.test_page import Page
from riprap._text import escape_control_chars, escape_nested, shorten
from riprap.cli._app import app
from riprap.integrations.terminal import BehaviorRow, LiveTable
from riprap.report import write_report
from riprap.report._charts import run_figure, save_figure
from riprap.types import Alert, Forecast, Level, Reading

NASTY = [
    "<script>window.evil=1</script>",
    "</script><script>window.evil=1</script>",
    "</title></style><b>evil</b>",
    '"><img src=x onerror=evil()>',
    "' onmouseover='evil()",
    "<!--<script ",
    "</script/evil",
    "]]><evil/>",
    "{{ 7 * 7 }}{% raw %}",
    '"]}];evil()//',
    "[red]evil[/] [/] [link=http://evil]x[/link]",
    "\x1b[2J\x1b]0;evil\x07\x9b31m",
    "a\rb\x00c\x08d\x7fe",
    "\u202elive\u2066 \u200f\u2028x\u2029",
    "a|b\\|c\\\\|d",
    "a\nb\n\n# evil",
    "`evil` ``` [x](javascript:evil) ![x](http://evil)",
    "&lt;b&gt; &amp; &#60;b&#62;",
    "evil 模型 🪨 naïve e\u0301",
    "=1+1;evil,\t,",
]
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def scene_of(text: str, name: str, run: Path | None = None) -> Scene:
    """A record that contains `text` in every text field."""
    scene = Scene(run, [name], 6, texts=[text] * 20)
    for step in range(4):
        scene.visit(step, name, np.full(20, 5.0 - 2 * step))
        said = {"1": text, "2": f"{step}{text}"}
        scene.writer.add_event(step, "probe_answers", answers={name: said})
        scene.read(step, name, "interference", -0.5)
        scene.read(step, name, "drift_mean", 0.1 * step, layer=name)
        scene.read(step, name, f"subspace_overlap:{name}|{name}", 0.5, unit=name)
    for state in ("NOT_RUN", "ERROR"):
        scene.lack(0, name, name, text, state)
    cause, forecast = Reading(1, name, name, 0.5), Forecast(2.0, 1.0, 3.0, HORIZON)
    for level in Level:
        scene.writer.add_alert(Alert(1, name, level, name, text, (cause,), forecast))
    scene.writer.write_meta(task=text, config={text: [text, {text: text}]}, ended=text, extra=text)
    return scene


class Elements(Page):
    """Page with the attributes of its elements."""

    def __init__(self, html: str) -> None:
        self.attributes: set[str] = set()
        super().__init__(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes |= {name for name, _ in attrs}
        super().handle_starttag(tag, attrs)


def page_of(text: str, name: str, folder: Path) -> tuple[str, Elements]:
    html = write_report(scene_of(text, name).writer, folder / "report.html").read_text("utf-8")
    return html, Elements(html)


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Elements:
    return page_of("words", "words", tmp_path_factory.mktemp("harmless"))[1]


def spaceless(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("text", NASTY)
def test_a_page_has_the_same_elements_whatever_was_written(
    text: str, tmp_path: Path, harmless: Elements
) -> None:
    html, found = page_of(text, text, tmp_path)
    assert found.tags == harmless.tags
    assert found.attributes == harmless.attributes
    assert found.scripts[0] == harmless.scripts[0]
    assert found.scripts[-1] == harmless.scripts[-1]
    own = html.replace(str(harmless.scripts[0]), "")  # without the text of the Vega libraries
    assert not ACTS.search(own)
    shown = spaceless(found.text)
    assert shown.count(spaceless(escape_control_chars(text))) >= 5
    assert spaceless(shorten(text)) in shown
    embedded = next(part for part in found.scripts if part.startswith("[{"))
    assert "<" not in embedded  # browsers end a script in more ways than the parser here knows
    figures = json.loads(embedded)
    assert figures[1] == escape_nested(figures[1])
    assert shorten(text) in {row["panel"] for row in rows_of(figures[2:])}


def rows_of(figures: list[dict]) -> list[dict]:
    texts = [text for one in figures for text in one["datasets"].values()]
    return [row for text in texts for row in json.loads(text)]


@pytest.mark.parametrize("text", NASTY[:1] + NASTY[9:13] + NASTY[17:18])
def test_figures_are_xml_and_show_the_name(text: str, tmp_path: Path) -> None:
    figure = run_figure(scene_of(text, text).writer)
    tree = ElementTree.parse(save_figure(figure, tmp_path / "figure.svg"))
    tags = {part.tag.split("}")[1] for part in tree.iter()}
    assert tags <= {
        "svg",
        "g",
        "path",
        "text",
        "line",
        "rect",
        "defs",
        "clipPath",
        "circle",
        "tspan",
    }
    names = {name for part in tree.iter() for name in part.attrib}
    assert not [name for name in names if name.startswith("on") or name.endswith("href")]
    texts = [part.text for part in tree.iter() if part.text]
    assert shorten(text) in texts
    page = Elements(save_figure(figure, tmp_path / "figure.html").read_text(encoding="utf-8"))
    assert page.tags.count("script") == 3
    assert set(page.tags) <= {*("html", "head", "meta", "script", "body", "div")} | {
        *("/html", "/head", "/script", "/body", "/div")
    }


def test_very_long_text_makes_no_very_long_page_or_figure(
    tmp_path: Path, harmless: Elements
) -> None:
    text = "evil <b>" * 12_500
    html, found = page_of(text, text, tmp_path)
    assert len(html) < 6_000_000
    assert found.tags == harmless.tags
    assert found.text.count(text) >= 3
    figure = save_figure(
        run_figure(scene_of(text, text).writer), tmp_path / "figure.png"
    ).read_bytes()
    width, height = (int.from_bytes(figure[at : at + 4]) for at in (16, 20))
    assert max(width, height) < 4000
    with LiveTable([text], 10, out := terminal(False)) as table:
        table.update(1, [BehaviorRow(text, 1.0)])
    assert len(written(out)) < 1000


def terminal(forced: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=forced, width=400, color_system=None)


def written(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("text", NASTY)
def test_the_live_table_shows_a_name_as_it_is_written(text: str, forced: bool) -> None:
    def drawn(name: str) -> str:
        out = terminal(forced)
        with LiveTable([name], 10, out) as table:
            table.update(1, [BehaviorRow(name, 1.0, level=Level.WATCH, forecast="in 3 steps")])
        return written(out)

    found, usual = drawn(text), drawn("a name")
    # The escape sequences are those of the table, and the same with any name.
    assert re.findall(r"\x1b\[[0-9;?]*[A-Za-z]", found) == re.findall(
        r"\x1b\[[0-9;?]*[A-Za-z]", usual
    )
    assert not ACTS.search(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", found))
    assert found.count("\n") == usual.count("\n")
    assert shorten(text)[:20] in found


@pytest.mark.parametrize("text", NASTY)
def test_an_error_on_the_command_line_has_no_escape_sequences(text: str, tmp_path: Path) -> None:
    if "\x00" in text or "/" in text:
        text = text.replace("\x00", "").replace("/", "")
    done = CliRunner().invoke(app, ["report", str(tmp_path / text)])
    assert done.exit_code == 1
    assert not ACTS.search(done.output)
    assert spaceless(escape_control_chars(text)) in spaceless(done.output)


def test_output_of_the_command_line_has_no_escape_sequences(tmp_path: Path) -> None:
    run = tmp_path / "\x1b]0;evil\x07"
    scene_of("x", "x", run).writer.close()
    done = CliRunner().invoke(app, ["report", str(run)])
    assert done.exit_code == 0
    assert "\\x1b]0;evil\\x07" in done.output
    assert not ACTS.search(done.output)
    as_json = CliRunner().invoke(app, ["report", str(run), "--json"])
    assert json.loads(as_json.output)["report"] == str(run / "report.html")
    assert not ACTS.search(as_json.output)


def cells(table: str) -> list[list[str]]:
    """Parse a Markdown table: its cells, row by row."""
    tokens = MarkdownIt("commonmark").enable("table").parse(table)
    inline = [child.type for token in tokens for child in token.children or []]
    assert set(inline) <= {"text", "code_inline", "softbreak", "em_open", "em_close"} | {
        *("strong_open", "strong_close", "text_special")
    }
    assert [token.type for token in tokens if token.level == 0] == ["table_open", "table_close"]
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline":
            rows[-1].append("".join(child.content for child in token.children or []))
    return rows


@given(st.sampled_from(NASTY) | st.text("a|\\`<>[]()!\n\r\t\x00\u202e*_ &;", max_size=12))
def test_a_cell_of_a_table_is_one_cell(text: str) -> None:
    rows = cells(markdown.table([{"first": 1, text or "x": text, "last": 3}] * 2))
    assert [len(row) for row in rows] == [3, 3, 3]
    assert [(row[0], row[2]) for row in rows[1:]] == [("1", "3")] * 2


@pytest.mark.parametrize("text", ["a|b", "a\\|b", "1 < 2", "µ [0, 1]", "x\\", "plain"])
def test_a_cell_reads_as_it_was_written(text: str) -> None:
    assert cells(markdown.table([{"a": text, "b": 1}]))[1][0] == text


def test_control_characters_are_escaped_and_others_unchanged() -> None:
    assert escape_control_chars("\x1b[2J\x00\u202e\ud800\r") == "\\x1b[2J\\x00\\u202e\\ud800\\r"
    assert escape_control_chars("naïve 模型 👩‍👩‍👧\n\tx") == "naïve 模型 👩‍👩‍👧\n\tx"
    assert shorten("a\nb\tc") == "a\\nb\\tc"
    assert len(shorten("\x1b" * 1000)) == 200
