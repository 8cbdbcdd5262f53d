"""The static pages in a real browser: words explain themselves, nothing is cut, figures come."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from dashboard.chrome import CHROMIUM, Chrome
from dashboard.test_browser import Served
from report.predicted import predicted
from report.synthetic import typical
from report.test_audit import made as audit
from report.test_diagnosis_page import kept, made, page
from riprap.report import write_audit, write_diagnosis, write_preflight, write_report
from riprap.types import BrokenProbe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
DRAWN = (
    "[...document.querySelectorAll('.figure')].filter((own) => own.checkVisibility())"
    ".every((own) => own.querySelector('canvas'))"
)
TIP = "getComputedStyle(document.activeElement, '::after')"
# Words that are wider than their place, so that the browser would break or hide them.
CUT = """[...document.querySelectorAll('th, td, h1, h2, h3, dt, dd, p, span.badge')]
  .filter((own) => own.checkVisibility() && own.scrollWidth > own.clientWidth + 1
    && getComputedStyle(own).display !== 'inline').map((own) => own.textContent)"""


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    browser = Chrome(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def opened(chrome: Chrome, file: Path, width: int) -> None:
    chrome.look(width)
    chrome.call("Page.navigate", url="about:blank")
    chrome.wait("location.href === 'about:blank'")
    chrome.problems.clear()
    chrome.call("Page.navigate", url=file.as_uri())
    chrome.wait("document.readyState === 'complete' && document.querySelector('main') !== null")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    scene = typical(folder / "run", 60)
    for step in range(10, 60, 10):
        scene.writer.add_event(step, "training", loss=1 / step, learning_rate=1e-3)
    scene.writer.close()
    return write_report(folder / "run", folder / "report.html")


@pytest.mark.parametrize("width", [390, 1280])
def test_a_word_is_explained_at_the_keyboard(chrome: Chrome, report: Path, width: int) -> None:
    opened(chrome, report, width)
    chrome.wait(DRAWN)
    for _ in range(40):
        chrome.key("Tab")
        if chrome.run("document.activeElement.textContent") == "threshold margin":
            break
    assert "falls to 0" in chrome.run(f"{TIP}.content")
    assert chrome.run("document.documentElement.scrollWidth") == width
    chrome.run("document.activeElement.blur()")
    assert chrome.run(f"{TIP}.content") in ("none", "normal")
    assert chrome.problems == []


@pytest.mark.parametrize("width", [390, 1280])
def test_no_word_of_the_pages_is_cut(
    chrome: Chrome, report: Path, tmp_path: Path, width: int
) -> None:
    lost = made()
    lost.broken = [BrokenProbe(3, "How do I pick a lock?", "Sure, first", "Sorry, I")]
    lost.score_now = math.nextafter(0.1, 1)
    files = [report, write_diagnosis(page(lost, kept()), tmp_path)]
    files.append(write_audit(audit({"refusal": 0.5}, {"talk": 1, "sums": 3}), tmp_path)[0])
    texts = dict.fromkeys(range(40), ("What is the capital of France?", "It is Paris. " * 20))
    settings = {"model": "m", "data": "rows.jsonl"}
    files.append(write_preflight(predicted(), "rows", texts, settings, tmp_path / "preflight.html"))
    for file in files:
        opened(chrome, file, width)
        assert chrome.run(CUT) == []
        assert chrome.run("document.documentElement.scrollWidth") == width


def test_other_signals_are_folded_away_and_drawn_when_opened(chrome: Chrome, report: Path) -> None:
    opened(chrome, report, 1280)
    chrome.wait(DRAWN)
    inside = "document.querySelectorAll('details.more canvas').length"
    assert chrome.run(inside) == 0
    chrome.run("document.querySelector('details.more summary').click()")
    chrome.wait(f"{inside} === 6")
    shown = "document.querySelector('.signals h3').textContent"
    assert chrome.run(shown).startswith("loss")  # of the training: not folded away


def test_buttons_zoom_and_move_the_steps(chrome: Chrome, report: Path) -> None:
    opened(chrome, report, 1280)
    chrome.wait(DRAWN)
    shown = "document.getElementById('shown').textContent"
    chrome.wait(f"{shown} === 'steps 0 to 60'")
    for kind, text in (("in", "15 to 45"), ("left", "0 to 30"), ("right", "15 to 45")):
        chrome.run(f"document.querySelector('[data-zoom={kind}]').focus()")
        chrome.key("Enter")
        assert chrome.run(shown) == f"steps {text}"
    chrome.run("document.querySelector('[data-zoom=all]').click()")
    assert chrome.run(shown) == "steps 0 to 60"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_figures_are_drawn_in_the_colors_of_the_page(
    chrome: Chrome, report: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    """The corner of a figure has the color of the card it lies on, also when the scheme changes."""
    page, _ = write_audit(audit({"refusal": 0.5}, {"talk": 1, "sums": 3}), tmp_path)
    corner = (
        "(() => { const own = [...document.querySelectorAll('main canvas')].at(-1);"
        "return [...own.getContext('2d').getImageData(1, 1, 1, 1).data].slice(0, 3).join(', ') })()"
    )
    card = "getComputedStyle(document.querySelector('section')).backgroundColor"
    for file, figures in ((page, 3), (report, 1)):
        opened(chrome, file, width)
        for is_dark in (dark, not dark):
            chrome.look(width, dark=is_dark)
            chrome.wait(f"document.querySelectorAll('main canvas').length >= {figures}")
            chrome.wait(DRAWN)
            chrome.wait(f"{card} === `rgb(${{{corner}}})`")
            inside = "[...document.querySelectorAll('main canvas')].every((own) =>"
            assert chrome.run(f"{inside} own.getBoundingClientRect().right <= {width})")
        assert chrome.problems == []


def test_the_audit_shows_its_image_where_scripts_are_refused(
    chrome: Chrome, tmp_path: Path
) -> None:
    """The dashboard serves the page of a run without scripts."""
    typical(tmp_path / "run", 20).writer.close()
    write_audit(audit({"refusal": 0.5}, {"talk": 1}), tmp_path / "run" / "selection")
    with Served(tmp_path) as served:
        chrome.call("Page.navigate", url=served.address)
        chrome.wait("document.querySelector('.pages a') !== null")
        assert chrome.run("document.querySelector('.pages a').textContent").startswith("selection")
        address = chrome.run("document.querySelector('.pages a').href")
        chrome.call("Page.navigate", url=address)
        chrome.wait("document.querySelector('img')?.naturalWidth > 100")
