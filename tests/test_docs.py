"""The documentation: its code runs, what its tutorial says comes true, its links and YAML hold."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from riprap import AlertPolicy, Level, Monitor
from riprap.commands.fastslow import FastSlowConfig
from riprap.commands.watch import WatchConfig
from riprap.diagnosis import Verdict
from riprap.integrations.config import MonitorConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
IN_ORDER = [  # one session, one folder
    *("tutorial.md", "record.md", "detectors.md", "behaviors.md"),
    *("guards/index.md", "guards/weights.md"),
]
ALONE = {  # each in a session of its own, and what must then be true of its names
    "recovery.md": lambda names: names["found"].verdict is Verdict.ALIGNMENT,
    "basin.md": lambda names: names["drift"]["later"]["words"].start < 1,
    "diagnose.md": lambda names: names["chosen"] is not None,
}

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]+) -->\n)?^ *```(?P<language>[\w{}-]*)\n(?P<text>.*?)^ *```$",
    re.M | re.S,
)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the comment on the line before it."""

    page: Path
    line: int
    mark: str
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(
            page,
            text.count("\n", 0, match.start("text")) + 1,
            match["mark"] or "",
            match["language"],
            textwrap.dedent(match["text"]),
        )
        for match in _BLOCK.finditer(text)
    ]
    return [block for block in found if block.language == language]


def all_blocks(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page, language)]


def write_files(page: Path, folder: Path) -> None:
    """Files that a page shows and its code then reads, marked `<!-- file: name -->`."""
    for block in blocks(page, "yaml"):
        if block.mark.startswith("file: "):
            (folder / block.mark.removeprefix("file: ")).write_text(block.text, encoding="utf-8")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that are there after all runnable blocks were run."""
    folder = tmp_path_factory.mktemp("docs")
    names: dict[str, Any] = {"__name__": "docs"}
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.chdir(folder)
        patch.setitem(Monitor.__init__.__kwdefaults__, "budget", None)
        for page in IN_ORDER:
            write_files(ROOT / "docs" / page, folder)
            run = [b for b in blocks(ROOT / "docs" / page, "python") if b.mark == "runs"]
            assert run, f"{page} has nothing to run"
            for block in run:
                # Line numbers of a traceback are those of the page.
                text = "\n" * (block.line - 1) + block.text
                code = compile(text, block.where, "exec", dont_inherit=True)
                exec(code, names)
    return names | {"folder": folder}


@pytest.mark.parametrize("page", ALONE)
def test_pages_that_stand_alone_come_true(page: str) -> None:
    names: dict[str, Any] = {"__name__": "docs"}
    for block in blocks(ROOT / "docs" / page, "python"):
        if block.mark == "runs":
            text = "\n" * (block.line - 1) + block.text
            exec(compile(text, block.where, "exec", dont_inherit=True), names)
    assert ALONE[page](names)


def test_the_behaviors_of_the_tutorial_were_learned_and_break(session: dict[str, Any]) -> None:
    assert (session["scores"].loc[0] == 1).all()
    broken = session["monitor"].broken()
    assert set(broken) == {"adding", "commuting"}
    assert all(step is not None and 1 <= step <= 120 for step in broken.values())
    assert (session["scores"].iloc[-1] < 0.9).all()


@pytest.mark.parametrize("behavior", ["adding", "commuting"])
def test_the_tutorials_warning_comes_before_the_break(
    session: dict[str, Any], behavior: str
) -> None:
    monitor = session["monitor"]
    alarming = [
        alert.step
        for alert in monitor.alerts
        if alert.behavior == behavior and alert.level.rank >= Level.WARNING.rank
    ]
    assert alarming
    assert alarming[0] < monitor.broken()[behavior]


def test_what_the_tutorial_says_of_its_readings(session: dict[str, Any]) -> None:
    history, missing = session["history"], session["missing"]
    predicted = session["predicted"].step.tolist()
    assert max(after - before for before, after in pairwise([0, *predicted, 121])) <= 4
    assert (session["predicted"].state == "MEASURED").all()
    visited = session["scores"].index.tolist()
    assert set(visited) <= {0, *predicted}
    assert visited[:9] == list(range(9))
    assert len(visited) < 121
    assert set(zip(missing.behavior, missing.signal, strict=True)) == {
        ("adding", "projection"),
        ("commuting", "projection"),
    }
    assert not (history.state == "ERROR").any()


def test_the_monitor_of_the_tutorial_left_no_trace(session: dict[str, Any]) -> None:
    """The same loop, from the same seed, without a monitor."""
    source = "".join(b.text for b in blocks(ROOT / "docs" / "tutorial.md", "python")[:1])
    train = next(
        b.text for b in blocks(ROOT / "docs" / "tutorial.md", "python") if "monitor.watch" in b.text
    )
    plain = re.sub(r"^monitor = .*$", "", train, flags=re.M)
    plain = plain.replace("with monitor.watch(model, optimizer):", "if True:")
    names: dict[str, Any] = {"__name__": "plain"}
    with torch.random.fork_rng():
        exec(source + plain, names)
    watched = session["model"].state_dict()
    for name, weights in names["model"].state_dict().items():
        assert torch.equal(weights, watched[name]), name


def test_the_report_and_the_record_are_there(session: dict[str, Any]) -> None:
    run = session["folder"] / "runs" / "first"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "adding" in page
    assert "commuting" in page
    assert len(session["readings"]) == len(session["frame"]) == len(session["history"])
    assert session["alerts"].step.tolist() == [alert.step for alert in session["alert_list"]]
    assert len(session["last_margins"]) == len(session["margins"][0]) == 121
    assert session["facts"]["every"] == 20


def test_the_policy_of_the_docs_is_frozen_and_amended(session: dict[str, Any]) -> None:
    kept = AlertPolicy.load(session["folder"] / "strict.yaml")
    assert kept.hash == session["frozen"].content_hash()
    assert [amendment.old_hash for amendment in session["patient"].amendments] == [kept.hash]
    assert session["patient"].hash != kept.hash


def test_a_record_is_reevaluated(session: dict[str, Any]) -> None:
    broke = session["monitor"].broken()["adding"]
    assert session["adding_history"].broken_at == broke
    assert any(a.level == Level.CRITICAL and a.step >= broke for a in session["active"])


def test_the_guard_of_the_docs_keeps_to_its_limit(session: dict[str, Any]) -> None:
    """What the monitor reads of the updates that stood in the end; without it they break both."""
    predicted = session["braked"].history().query("signal == 'interference'")
    assert len(predicted) == 2 * 60
    assert predicted.value.min() >= -0.01 * (1 + 1e-4)
    assert session["shortened"]
    assert session["braked"].broken() == {"adding": None, "commuting": None}
    assert not any(step is None for step in session["monitor"].broken().values())


def test_the_rollback_of_the_docs_went_back_and_kept_the_skills(session: dict[str, Any]) -> None:
    """Scores end beside the floor of 0.90: which side it is depends on the processor."""
    assert any(action.applied for action in session["watched"].actions)

    def worst(monitor: Monitor) -> float:
        last = [history.margins[-1] for history in monitor.behavior_histories.values()]
        return min(float((margins > 0).mean()) for margins in last)

    unguarded = worst(session["monitor"])
    assert unguarded + 0.1 < 0.8 <= worst(session["watched"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in (match["target"] for match in _LINK.finditer(text)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}: no such heading"


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=lambda block: block.where)
def test_yaml_is_what_its_reader_takes(block: Block) -> None:
    document = yaml.safe_load(block.text)
    if "plugins" in document:
        MonitorConfig.parse(document["riprap"], block.where)
        return
    reader: Any = AlertPolicy if "detectors" in document else WatchConfig
    reader = FastSlowConfig if "fastslow" in document else reader
    reader.parse(document, block.where)


@pytest.mark.parametrize("block", all_blocks("python"), ids=lambda block: block.where)
def test_python_compiles(block: Block) -> None:
    compile(block.text, block.where, "exec")


def test_there_is_something_to_check() -> None:
    """A pattern that finds nothing would pass all of the above."""
    assert {page.name for page in PAGES} >= {"README.md", "CONTRIBUTING.md", "index.md", "watch.md"}
    assert len(all_blocks("yaml")) >= 3
    assert any(block.page.name == "README.md" for block in all_blocks("python"))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(re.findall(r"^ *```", text, re.M)) == 2 * len(_BLOCK.findall(text)), page.name
