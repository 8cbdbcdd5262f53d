"""The page in a real browser: it follows a run, alerts and probes open, texts stay texts."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from dashboard import training
from dashboard.chrome import CHROMIUM, Chrome
from evals.test_compare import evals, task
from hostile.test_escaping import NASTY
from report.synthetic import Scene, typical
from report.test_instructions import EVIL, add_cycles
from riprap._text import shorten
from riprap.record import FILE_NAME, Writer
from riprap.types import Action, Alert, Level, Reading

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    browser = Chrome(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


class Served:
    """`riprap dashboard` in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "riprap", "dashboard", str(folder), "--port", "0"]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().removeprefix("live page: ").strip()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *raised: object) -> None:
        self.process.terminate()
        self.process.wait(30)


def opened(chrome: Chrome, served: Served, width: int = 1280) -> None:
    chrome.call("Page.navigate", url="about:blank")  # the page before may have lost its server
    chrome.wait("location.href === 'about:blank'")
    chrome.problems.clear()
    chrome.look(width)
    chrome.call("Page.navigate", url=served.address)
    chrome.wait("document.querySelector('.lane .score .line') !== null")


def test_a_loss_that_is_no_number_is_a_gap(chrome: Chrome, tmp_path: Path) -> None:
    scene = Scene(tmp_path / "run", ["refusal"])
    scene.visit(0, "refusal", np.full(20, 5.0, dtype=np.float32))
    losses = (2.5, 2.0, float("nan"), 1.5, 1.0, float("inf"), float("nan"))
    for step, loss in enumerate(losses, 1):
        scene.writer.add_event(step, "training", loss=loss, learning_rate=1e-3)
    scene.writer.flush()
    with Served(tmp_path) as served:
        opened(chrome, served)
        drawn = chrome.run("document.querySelector('.loss .line').getAttribute('d')")
        assert (drawn.count("M"), drawn.count("L")) == (2, 2)
        text = chrome.run("document.querySelector('main').innerText")
        assert "loss not finite since step 6, learning rate 0.001" in text
        assert "2.50 → not finite since step 6" in text
        assert chrome.problems == []


def test_of_reinforcement_learning_the_reward_is_drawn(chrome: Chrome, tmp_path: Path) -> None:
    scene = Scene(tmp_path / "run", ["refusal"])
    scene.visit(0, "refusal", np.full(20, 5.0, dtype=np.float32))
    for step in range(1, 5):
        scene.writer.add_event(step, "training", loss=-0.01, learning_rate=1e-3, reward=step / 8)
    scene.writer.flush()
    with Served(tmp_path) as served:
        opened(chrome, served)
        words = "[...document.querySelectorAll('.lane text')].map((own) => own.textContent)"
        titles = chrome.run(words)
        assert "reward" in titles and "loss" not in titles
        text = chrome.run("document.querySelector('main').innerText")
        assert "reward 0.5" in text and "loss -0.01" in text.replace("\u2212", "-")
        assert chrome.problems == []


def test_it_follows_a_run_and_its_alerts_open(chrome: Chrome, tmp_path: Path) -> None:
    scene = Scene(tmp_path / "run", ["refusal"])
    writer = scene.writer
    scene.visit(0, "refusal", np.full(20, 5.0, dtype=np.float32))
    writer.flush()
    with Served(tmp_path) as served:
        opened(chrome, served)
        assert chrome.run("document.querySelectorAll('.buttons button').length") == 0
        scene.visit(10, "refusal", np.full(20, -1.0, dtype=np.float32))
        for step, said in ((0, "I'm sorry"), (10, "Sure")):
            writer.add_event(step, "probe_answers", answers={"refusal": {"3": said}})
        cause = Reading(5, "refusal", "margin_low", 1.5)
        writer.add_alert(Alert(5, "refusal", Level.CRITICAL, "forecast", "it breaks", (cause,)))
        writer.add_action(Action(7, "agem", "gradients", True, "projected it"))
        writer.flush()
        chrome.wait("document.querySelector('.buttons .critical') !== null")
        chrome.wait("document.querySelector('.first').textContent.includes('broke at step 10')")
        chrome.wait("document.querySelector('.lane .badge.broken') !== null")
        assert len(chrome.run("document.querySelector('.score .line').getAttribute('d')")) > 10

        chrome.run("document.querySelector('.buttons .critical').focus()")
        chrome.key("Enter")
        chrome.wait("document.querySelectorAll('.chain li').length === 4")
        text = chrome.run("document.getElementById('detail').innerText")
        for part in ("threshold margin: 1.50, at step 5", "it breaks", "projected it", "is 0.00"):
            assert part in text
        chrome.key("Escape")
        chrome.wait("!document.getElementById('detail').open")

        chrome.run("document.querySelector('[role=slider]').focus()")
        chrome.key("ArrowLeft")
        now = "document.querySelector('[role=slider]').getAttribute('aria-valuetext')"
        assert chrome.run(now).startswith("step 0, score 1")
        chrome.key("ArrowRight")
        chrome.key("Enter")
        chrome.wait("document.querySelectorAll('#detail tbody tr').length === 20")
        lead = chrome.run("document.querySelector('#detail .lead').textContent")
        assert lead == "At step 10, 20 of 20 probes fail; 20 of them passed at step 0."
        answers = "[...document.querySelectorAll('#detail .answer')].map((own) => own.textContent)"
        assert chrome.run(answers) == ["step 0: I'm sorry", "step 10: Sure"]
        assert chrome.run("document.querySelector('#detail details').open")
        detail = "document.getElementById('detail').innerText"
        assert "No row was examined: riprap select DATA" in chrome.run(detail)
        chrome.key("Escape")
        facts = {"step": 9, "rows": ["<b>3", "4"], "by_id": True}
        writer.add_event(9, "selection", scores={"harm/refusal": [3.0, 1.0]}, **facts)
        writer.flush()
        chrome.key("Enter")
        chrome.wait(f"{detail}.includes('1 of 2 learned rows were predicted to do half of it')")
        rows = "[...document.querySelectorAll('[aria-label=\"rows to blame\"] tbody tr')]"
        assert chrome.run(f"{rows}.map((own) => own.innerText.replace(/\\s+/g, ' '))") == [
            "row <b>3 75.0%",
            "row 4 25.0%",
        ]
        chrome.key("Escape")

        Writer(tmp_path / "second").close()  # a new run appears
        chrome.wait("document.querySelectorAll('#runs li').length === 2")
        assert chrome.problems == []

        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(60) == 0
        lost = "document.getElementById('connection').textContent.startsWith('connection lost')"
        chrome.wait(lost)
    writer.close()


class Trained:
    """A training in a process of its own, which goes on until `end`."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-W", "ignore", training.__file__, str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, **pipes)

    def __enter__(self) -> Trained:
        return self

    def __exit__(self, *raised: object) -> None:
        self.process.kill()
        self.process.wait(30)

    def end(self) -> int:
        """Let the training end; return its last step."""
        printed, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0
        return int(printed.split()[-1])


@pytest.mark.parametrize("is_open_before", [True, False])
def test_it_follows_another_process_that_trains_to_its_end(
    chrome: Chrome, tmp_path: Path, is_open_before: bool
) -> None:
    step = "Number(/step ([\\d,]+)/.exec(document.querySelector('main').innerText)[1])"
    curve = "document.querySelector('.score .line').getAttribute('d')"
    (tmp_path / "runs").mkdir()
    with ExitStack() as open_:
        if not is_open_before:
            trained = open_.enter_context(Trained(tmp_path / "runs" / "own"))
            record = tmp_path / "runs" / "own" / FILE_NAME
            while not record.exists():
                assert trained.process.poll() is None
                time.sleep(0.1)
        served = open_.enter_context(Served(tmp_path / "runs"))
        if is_open_before:
            chrome.call("Page.navigate", url=served.address)
            chrome.wait("document.getElementById('connection')?.textContent === 'live'")
            assert chrome.run("document.querySelector('.lane')") is None
            chrome.problems.clear()
            chrome.run("window.opened = 'once'")
            trained = open_.enter_context(Trained(tmp_path / "runs" / "own"))
            chrome.wait("document.querySelector('.lane .score .line') !== null")
        else:
            opened(chrome, served)
            chrome.run("window.opened = 'once'")
        for _ in range(2):
            now, drawn = chrome.run(step), chrome.run(curve)
            chrome.wait(f"{step} > {now}")
            chrome.wait(f"{curve} !== {json.dumps(drawn)}")
        state = "document.querySelector('.badge').textContent"
        assert chrome.run(state) == "training"
        last = trained.end()
        assert last > now
        chrome.wait(f"{state} === 'ended' && {step} === {last}")
        assert chrome.run("window.opened") == "once"  # the page was never loaded again
        assert chrome.problems == []


def test_the_token_opens_the_page_and_nothing_else_does(chrome: Chrome, tmp_path: Path) -> None:
    typical(tmp_path / "run", 20).writer.close()
    token = "a-token-of-some-length"
    with Served(tmp_path, "--token", token) as served:
        assert token in served.address
        chrome.look(1280)
        chrome.call("Page.navigate", url=served.address.partition("?")[0])
        chrome.wait("document.body.innerText.includes('A token is needed')")
        opened(chrome, served)
        assert chrome.run("location.search") == ""
        assert chrome.run("document.cookie") == ""
        assert chrome.problems == []


@pytest.mark.parametrize("width", [390, 1280, 2560])
@pytest.mark.parametrize("dark", [False, True])
def test_no_width_makes_it_scroll_sideways(
    chrome: Chrome, tmp_path: Path, width: int, dark: bool
) -> None:
    for name in ("one", "two"):
        typical(tmp_path / name, 60).writer.close()
    with Served(tmp_path) as served:
        opened(chrome, served, width)
        chrome.look(width, dark=dark)
        chrome.wait("document.querySelectorAll('.lane .score .line').length === 6")
        assert chrome.run("document.documentElement.scrollWidth") == width
        ground = chrome.run("getComputedStyle(document.body).backgroundColor")
        assert (int(re.findall(r"\d+", ground)[0]) < 128) == dark
        unnamed = (
            "[...document.querySelectorAll('button, [role=slider], input')].filter((own) => "
            "!(own.getAttribute('aria-label') || own.innerText || own.labels?.length)).length"
        )
        assert chrome.run(unnamed) == 0
        assert chrome.problems == []


def test_hostile_texts_stay_texts(chrome: Chrome, tmp_path: Path) -> None:
    scene = Scene(tmp_path / "run", NASTY, 6, texts=NASTY)
    said = {str(index): text for index, text in enumerate(NASTY)}
    for text in NASTY:
        for step in (0, 6):
            margins = np.full(len(NASTY), 5.0 - 2 * step, dtype=np.float32)
            scene.visit(step, text, margins)
            scene.writer.add_event(step, "probe_answers", answers={text: said})
        scene.writer.add_alert(Alert(6, text, Level.WARNING, text, text))
        scene.writer.add_action(Action(0, text, "update", True, text))
    scene.writer.write_meta(task=NASTY[0])
    scene.writer.close()
    with Served(tmp_path) as served:
        opened(chrome, served)
        names = chrome.run("[...document.querySelectorAll('h3')].map((own) => own.textContent)")
        assert names == ["Training", *map(shorten, NASTY)]
        chrome.run("document.querySelectorAll('.buttons .warning').forEach((own) => own.click())")
        chrome.wait("document.querySelectorAll('.chain li').length === 4")
        rows = "[...document.querySelectorAll('#detail tbody tr')].map((own) => own.cells[0])"
        shown = chrome.run(f"{rows}.map((own) => own.firstChild.textContent)")
        assert sorted(shown) == sorted(map(shorten, NASTY))
        answers = chrome.run(f"{rows}.map((own) => own.querySelector('.answer').textContent)")
        assert answers == [f"steps 0 to 6: {text}" for text in shown]
        kinds = chrome.run(
            "[...new Set([...document.querySelectorAll('*')].map((o) => o.tagName))]"
        )
        assert not {"IMG", "B", "EVIL", "IFRAME"} & set(kinds)
        assert chrome.run("window.evil") is None
        assert chrome.problems == []


def drag(chrome: Chrome, start: tuple[float, float], end: tuple[float, float]) -> None:
    for kind, (x, y), held in (
        ("mousePressed", start, 1),
        ("mouseMoved", end, 1),
        ("mouseReleased", end, 0),
    ):
        button = "left" if kind != "mouseMoved" else "none"
        own = {"type": kind, "x": x, "y": y, "button": button, "buttons": held, "clickCount": 1}
        chrome.call("Input.dispatchMouseEvent", **own)


def test_steps_zoom_by_button_key_and_drag(chrome: Chrome, tmp_path: Path) -> None:
    scene = typical(tmp_path / "run", 60)
    scene.writer.add_event(60, "ended", ended="2026-11-30T00:00:00")
    for name in ("refusal", "arithmetic", "general knowledge"):  # no forecast beyond the end
        scene.lack(60, name, "forecast_low", "none")
    scene.writer.close()
    with Served(tmp_path) as served:
        opened(chrome, served)
        shown = "document.getElementById('range').textContent"
        chrome.wait(f"{shown}.startsWith('steps 0 to ')")
        last = int(chrome.run(shown).rpartition(" ")[2])
        path = "document.querySelector('.score .line').getAttribute('d')"
        whole = chrome.run(path)

        chrome.run("document.querySelector('[data-zoom=in]').focus()")
        chrome.key("Enter")
        chrome.wait(f"{shown} === 'steps {round(last / 4)} to {round(last * 3 / 4)}'")
        assert chrome.run(path) != whole
        hidden = (
            "[...document.querySelectorAll('.buttons .mark')].filter((own) => own.hidden).length"
        )
        assert chrome.run(hidden) > 0  # alerts before the first shown step
        chrome.run("document.querySelector('[data-zoom=left]').click()")
        chrome.wait(f"{shown} === 'steps 0 to {round(last / 2)}'")

        chrome.run("document.querySelector('[role=slider]').focus()")
        for modifier in (1, 2, 4):  # Alt, Ctrl, Meta: keys of the browser
            chrome.call("Input.dispatchKeyEvent", type="rawKeyDown", key="0", modifiers=modifier)
        chrome.call("Input.dispatchKeyEvent", type="keyDown", key="]", text="]")
        chrome.wait(f"{shown} === 'steps {round(last / 4)} to {round(last * 3 / 4)}'")
        chrome.call("Input.dispatchKeyEvent", type="keyDown", key="0", text="0")
        chrome.wait(f"{shown} === 'steps 0 to {last}'")
        assert chrome.run(path) == whole

        box = "document.querySelector('[role=slider]').getBoundingClientRect()"
        left, top, width = (chrome.run(f"{box}.{side}") for side in ("left", "top", "width"))
        drag(chrome, (left + width * 0.25, top + 60), (left + width * 0.5, top + 60))
        chrome.wait(f"{shown} !== 'steps 0 to {last}'")
        first, end = map(int, re.findall(r"\d+", chrome.run(shown)))
        assert abs(first - last * 0.22) < 3 and abs(end - last * 0.48) < 3
        assert not chrome.run("document.getElementById('detail').open")  # a drag is no click
        assert chrome.problems == []


def test_interference_is_shown_by_layer(chrome: Chrome, tmp_path: Path) -> None:
    scene = Scene(tmp_path / "run", ["refusal"])
    for step in (0, 10, 20):
        scene.visit(step, "refusal", np.full(20, 5.0, dtype=np.float32))
        for layer, value in (("layers.0", -0.5), ("layers.1", 0.1), ("<b>head", -2.0)):
            scene.read(step, "refusal", "interference_layer", value * step, layer)
    scene.writer.close()
    with Served(tmp_path) as served:
        opened(chrome, served)
        cells = "[...document.querySelectorAll('rect.down')].map((own) => own.getAttribute('y'))"
        assert len(set(chrome.run(cells))) == 2
        assert chrome.run("document.querySelectorAll('rect.up').length") >= 3
        readout = "document.querySelector('.readout').textContent"
        assert chrome.run(readout).endswith("most interference: <b>head -40")
        assert chrome.problems == []


@pytest.mark.parametrize("width", [1280, 390])
def test_rewards_of_instructions_are_drawn(chrome: Chrome, tmp_path: Path, width: int) -> None:
    scene = Scene(tmp_path / "run", ["refusal"])
    scene.visit(0, "refusal", np.full(20, 5.0, dtype=np.float32))
    add_cycles(scene.writer, EVIL)
    with Served(tmp_path) as served:
        opened(chrome, served, width)
        chrome.run("document.querySelector('.instructions summary').click()")
        dots = "[...document.querySelectorAll('.instructions circle')]"
        texts = chrome.run(f"{dots}.map((own) => own.textContent)")
        assert "instruction 0, cycle 2: 0, not kept" in texts and len(texts) == 5
        assert chrome.run(f"{dots}.filter((own) => own.matches('.dropped')).length") == 1
        height = (
            f"{dots}.map((own) => own.textContent.split(',')[0] + ' ' + own.getAttribute('cy'))"
        )
        places = [own.rsplit(" ", 1) for own in chrome.run(height)]
        assert min(places, key=lambda own: float(own[1]))[0] == "instruction 2"  # reward 1
        area = "document.querySelector('.instructions svg').getBoundingClientRect()"
        assert chrome.run(f"{area}.width") > 0.75 * min(width, 1000)
        assert chrome.run("document.documentElement.scrollWidth <= innerWidth")
        assert chrome.problems == []


def test_evals_in_the_folder_of_a_run_make_a_table_for_each_task(
    chrome: Chrome, tmp_path: Path
) -> None:
    """They appear while the page is open, and their texts stay texts."""
    run, nasty = tmp_path / "run", "<b>boolq"
    typical(run, 20).writer.close()
    start, end = [1.0] * 40, [1.0] * 20 + [0.0] * 20
    before = evals(task(nasty, start), task("advbench", [0.0] * 40, True, "j"), model="tiny")
    after = evals(task(nasty, end), task("advbench", [0.0] * 40, True, "j"), model="tuned")
    with Served(tmp_path) as served:
        opened(chrome, served)
        place = "document.querySelector('details.evals')"
        assert chrome.run(f"{place}.hidden")
        before.save(run / "evals-base" / "evals.json")
        chrome.wait(f"{place}.innerText.startsWith('Evals: 2 tasks')")
        after.save(run / "evals-tuned" / "evals.json")
        chrome.wait(f"{place}.innerText.startsWith('Evals: worse than in the base: {nasty}')")
        chrome.run(f"{place}.querySelector('summary').click()")
        heads = f"[...{place}.querySelectorAll('h3')].map((own) => own.textContent)"
        assert chrome.run(heads) == [
            f"{nasty} metric; high is good",
            "advbench metric; low is good",
        ]
        rows = f"[...{place}.querySelector('tbody').rows]"
        cells = chrome.run(f"{rows}.map((own) => [...own.cells].map((one) => one.textContent))")
        assert [own[:2] + own[3:4] for own in cells] == [
            ["tiny", "1.000", "40"],
            ["tuned", "0.500", "40"],
        ]
        assert [own[-1][:8] for own in cells] == ["", "-0.500 ["]
        assert chrome.run(f"{rows}.map((own) => own.className)") == ["", "worse"]
        weight = f"getComputedStyle({place}.querySelector('.worse td:last-child')).fontWeight"
        assert chrome.run(weight) == "600"
        assert chrome.run(f"{place}.querySelector('b')") is None
        for width in (390, 1280):
            chrome.look(width)
            assert chrome.run("document.documentElement.scrollWidth") == width
        assert chrome.problems == []


def test_pages_in_the_folder_of_a_run_are_linked_and_run_no_script(
    chrome: Chrome, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    typical(run, 20).writer.close()
    (run / "diagnosis").mkdir()
    (run / "diagnosis" / "diagnosis.json").write_text("{}")
    evil = "<script>document.title = 'evil'</script><style>p { color: rgb(1, 2, 3); }</style>"
    page = f"<title>x · Riprap</title>{evil}<p>the verdict</p>"
    (run / "diagnosis" / "report.html").write_text(page, encoding="utf-8")
    with Served(tmp_path) as served:
        opened(chrome, served)
        links = "[...document.querySelectorAll('.pages a')].map((own) => own.textContent)"
        assert chrome.run(links) == ["diagnosis (diagnosis)"]
        address = chrome.run("document.querySelector('.pages a').href")
        chrome.call("Page.navigate", url=address)
        chrome.wait("document.body?.innerText.includes('the verdict') === true")
        assert chrome.run("document.title") == "x · Riprap"
        color = "getComputedStyle(document.querySelector('p')).color"
        assert chrome.run(color) == "rgb(1, 2, 3)"  # its own style applies
