"""The page over HTTP: who may read it, what it sends, and that changes arrive."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from report.synthetic import Scene, typical
from riprap._glossary import WORDS
from riprap._text import escape_control_chars, shorten
from riprap.dashboard import check_address, make_app, serve
from riprap.dashboard._app import Stream
from riprap.dashboard._follower import MAX_CHANGES, Follower
from riprap.dashboard._runs import Runs
from riprap.dashboard._serve import address_to_open
from riprap.errors import ConfigError, RecordError
from riprap.record import FILE_NAME, Reader, Writer, save_result
from riprap.types import Action, Alert, Forecast, Level, Reading

TOKEN = "correct-horse-battery-staple"
LOCAL = "http://127.0.0.1:8642"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    scene = typical(folder / "first")
    scene.writer.add_action(Action(41, "agem", "gradients", True, "projected the gradient"))
    for step in (40, 80):
        scene.writer.add_event(step, "training", loss=step / 20, learning_rate=1e-3)
    scene.writer.close()
    return folder


@pytest.fixture
def client(folder: Path) -> Iterator[TestClient]:
    yield TestClient(make_app([folder]), base_url=LOCAL)


def guarded(folder: Path, host: str = "0.0.0.0") -> TestClient:
    app = make_app([folder], host, TOKEN)
    return TestClient(app, base_url="http://192.0.2.7:8642", follow_redirects=False)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8642", "127.0.0.1.evil.example", "192.0.2.7", "", "[::2]"],
)
def test_a_host_that_is_not_this_machine_is_refused(client: TestClient, host: str) -> None:
    for path in ("/", "/runs/1", "/events", "/app.js"):
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == 421
        assert "refusal" not in answer.text


@pytest.mark.parametrize("host", ["localhost:9", "127.0.0.1", "[::1]:8642", "LOCALHOST."])
def test_a_name_of_this_machine_is_accepted(client: TestClient, host: str) -> None:
    assert client.get("/runs/1", headers={"host": host}).status_code == 200


def test_each_address_of_an_open_server_is_accepted_but_no_foreign_name(folder: Path) -> None:
    client, bearer = guarded(folder), {"authorization": f"Bearer {TOKEN}"}
    assert client.get("/runs/1", headers=bearer).status_code == 200
    answer = client.get("/runs/1", headers={**bearer, "host": "evil.example"})
    assert answer.status_code == 421


@pytest.mark.parametrize("path", ["/", "/app.js", "/runs/1", "/runs/1/alerts/1", "/events", "/no"])
def test_without_the_token_nothing_is_read(folder: Path, path: str) -> None:
    client = guarded(folder)
    wrong: list[dict[str, str | bytes]] = [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer "},
        {"cookie": f"riprap_token={TOKEN}"},
        {"cookie": b"riprap_token=\xff; ="},
    ]
    for headers in wrong:
        assert client.get(path, headers=headers).status_code == 401
    assert client.get(path, params={"token": TOKEN[:-1]}).status_code == 401


def test_the_token_opens_the_page_and_leaves_the_address(folder: Path) -> None:
    client = guarded(folder)
    answer = client.get("/", params={"token": TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    assert client.get("/").status_code == 200  # the client keeps the cookie
    assert client.get("/runs/1").json()["view"]["name"] == "first"
    other = guarded(folder)
    assert other.get("/runs/1", params={"token": TOKEN}).status_code == 200


def test_an_address_that_others_reach_needs_a_long_token() -> None:
    check_address("127.0.0.1", None)
    check_address("::1", None)
    check_address("0.0.0.0", TOKEN)
    for host in ("0.0.0.0", "::", "192.0.2.7", "example.org"):
        with pytest.raises(ConfigError, match="give a --token too"):
            check_address(host, None)
    with pytest.raises(ConfigError, match="has 5 characters"):
        check_address("127.0.0.1", "short")


def test_serve_refuses_before_it_listens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--token"):
        serve([tmp_path], "0.0.0.0", announce=pytest.fail)
    with pytest.raises(RecordError, match="no run at"):
        serve([tmp_path / "missing"], announce=pytest.fail)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_no_method_writes(client: TestClient, folder: Path, method: str) -> None:
    before = (folder / "first" / FILE_NAME).read_bytes()
    for path in ("/", "/runs/1", "/events"):
        assert client.request(method, path).status_code == 405
    assert (folder / "first" / FILE_NAME).read_bytes() == before


def test_the_policy_allows_no_inline_script_and_the_page_has_none(client: TestClient) -> None:
    for path in ("/", "/page.css", "/app.js", "/runs/1", "/no"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
    page = client.get("/").text
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"\bstyle=|<style|\bon\w+=|https?:", page)
    names = re.findall(r'(?:src|href)="/([^"]+)"', page)
    scripts = [client.get(f"/{name}") for name in names]
    assert all(answer.status_code == 200 for answer in scripts) and len(scripts) == 2
    for script in (client.get(f"/{name}.js").text for name in ("app", "chart", "data", "detail")):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)


def test_the_view_holds_what_the_record_holds(client: TestClient, folder: Path) -> None:
    view = client.get("/runs/1").json()["view"]
    assert [own["name"] for own in view["behaviors"]] == [
        *("refusal", "arithmetic", "general knowledge")
    ]
    with Reader(folder / "first") as reader:
        scores = reader.series()["refusal", "score", ""]
        margins = reader.margins("refusal")
    line = next(own for own in view["lines"] if (own["behavior"], own["signal"]) == (0, "score"))
    assert line["steps"] == list(scores)
    assert line["values"] == pytest.approx(list(scores.values()), rel=1e-4)
    band = next(own for own in view["bands"] if own["behavior"] == 0)
    expected = np.quantile(margins[band["steps"][-1]].astype(float), [0.1, 0.9])
    assert [band["low"][-1], band["high"][-1]] == pytest.approx(expected, rel=1e-4)
    assert "Refusal broke at step 15" in view["conclusion"]["line"]
    assert len(view["conclusion"]["numbers"]) == 3
    assert view["training"]["loss"] == {"steps": [40, 80], "values": [2.0, 4.0]}


def test_an_alert_opens_into_signal_action_and_effect(client: TestClient) -> None:
    view = client.get("/runs/1").json()["view"]
    alert = next(own for own in view["alerts"] if own["behavior"] == 0)
    found = client.get(f"/runs/1/alerts/{alert['id']}").json()
    assert found["signal"] == ["threshold margin: 3.40, at step 3"]
    assert "expected to reach its floor in 8 steps" in found["alert"]
    assert found["action"] == ["agem changed training once, at step 41: projected the gradient"]
    assert found["effect"][0] == "The alert stands."
    assert found["effect"][1] == "The score was 1.00 at the alert, and is 0.00 at step 120."
    assert client.get("/runs/1/alerts/99").status_code == 404
    assert client.get("/runs/9").status_code == 404


def test_an_alert_after_which_a_guard_acted_opens_into_the_evidence(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run")
    writer.write_meta(behaviors=[{"name": "a", "floor": 0.9}])
    for step, margin in ((0, 4.0), (10, 1.5), (20, 3.0)):
        writer.add_margins(step, "a", np.full(20, margin, dtype=np.float32))
        writer.add_readings([Reading(step, "a", "score", 1.0)])
    for step, until, level in ((10, 20, Level.CRITICAL), (11, 20, Level.WARNING)):
        writer.add_alert(Alert(step, "a", level, "forecast", "it falls"))
        alerts = [{"step": step, "level": str(level)}]
        writer.add_event(until, "cleared", behavior="a", detector="forecast", alerts=alerts)
    writer.add_action(Action(12, "agem", "gradients", True, "projected it"))
    writer.close()
    client = TestClient(make_app([tmp_path]), base_url=LOCAL)
    evidence = (
        "In between agem changed training at 1 step (the last time: projected it). The threshold "
        "margin was 1.50 at the alert and 3.00 when it was withdrawn; at 0 the behavior breaks. "
        "The guard may have prevented a break: only a run without the guard could tell."
    )
    for number in (1, 2):
        effect = client.get(f"/runs/1/alerts/{number}").json()["effect"]
        assert " ".join(effect).count(evidence) == 1  # once, though the outcome tells of one too


def test_a_forecast_of_what_is_broken_already_is_not_shown(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run")
    writer.write_meta(behaviors=[{"name": "a", "floor": 0.9}])
    for number, high in ((1, 0.0), (2, 9.0)):
        forecast = Forecast(high / 2, 0.0, high, 50)
        writer.add_alert(Alert(number, "a", Level.CRITICAL, "forecast", "why", (), forecast))
    writer.close()
    client = TestClient(make_app([tmp_path]), base_url=LOCAL)
    texts = [client.get(f"/runs/1/alerts/{number}").json()["forecast"] for number in (1, 2)]
    assert texts == ["", "at step 6 (2 to 11)"]


def test_a_point_opens_into_its_probes(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run")
    texts = ["how to bake", "how to paint", "how to read", "how to sing"]
    writer.write_meta(behaviors=[{"name": "a", "floor": 0.9, "texts": texts}])
    for step, margins in ((0, [1, 1, -1, -1]), (10, [2, -2, 3, -3]), (20, [9, 9, 9, 9])):
        writer.add_margins(step, "a", np.array(margins, dtype=np.float32))
        writer.add_readings([Reading(step, "a", "score", 0.5)])
    for step, said in ((0, "blue"), (10, "red <b>"), (20, "red <b>")):
        writer.add_event(step, "probe_answers", answers={"a": {"1": said, "0": "oven"}})
    writer.add_alert(Alert(10, "a", Level.WARNING, "trend", "it falls"))
    writer.close()
    client = TestClient(make_app([tmp_path]), base_url=LOCAL)
    found = client.get("/runs/1/probes/0/15").json()
    assert client.get("/runs/1/alerts/1").json()["probes"] == found
    assert (found["step"], found["start"]) == (10, 0)
    groups = {kind: [own["text"] for own in probes] for kind, probes in found["groups"].items()}
    assert groups == {
        "broke": ["how to paint"],
        "failed": ["how to sing"],
        "recovered": ["how to read"],
        "passed": ["how to bake"],
    }
    assert found["rows"]["rows"] == [] and "No row was examined" in found["rows"]["sentences"]
    broke = found["groups"]["broke"][0]
    assert (broke["before"], broke["margin"]) == ("1.00", "-2.00")
    assert broke["answers"] == [
        {"step": 0, "until": 0, "text": "blue"},
        {"step": 10, "until": 20, "text": "red <b>"},
    ]
    passed = found["groups"]["passed"][0]
    assert passed["answers"] == [{"step": 0, "until": 20, "text": "oven"}]
    assert "answers" not in found["groups"]["failed"][0]
    assert found["answered"] == [0, 10, 20]
    for wrong in ("1/15", "7/0"):
        assert client.get(f"/runs/1/probes/{wrong}").status_code == 404


def visit(writer: Writer, step: int, score: float) -> None:
    writer.add_readings([Reading(step, "a", "score", score)])
    writer.flush()


def follower_of(folder: Path) -> tuple[Writer, Follower]:
    writer = Writer(folder)
    writer.write_meta(behaviors=[{"name": "a", "floor": 0.9}])
    visit(writer, 0, 1.0)
    return writer, Follower(folder / FILE_NAME, "1", "run")


def scores_of(answer: str) -> dict[int, float]:
    found, parts = {}, json.loads(answer)
    for part in [parts["view"], *parts["changes"]]:
        for line in part.get("lines", []):
            found |= dict(zip(line["steps"], line["values"], strict=True))
    return found


def test_changes_carry_the_new_rows_only_and_add_up(tmp_path: Path) -> None:
    writer, follower = follower_of(tmp_path / "run")
    assert follower.poll() is None  # nobody has asked for it
    first = json.loads(follower.view())
    assert first["view"]["version"] == 0
    expected = {0: 1.0}
    for step in range(1, 2 * MAX_CHANGES):
        visit(writer, step, 0.5)
        expected[step] = 0.5
        message = json.loads(follower.poll() or "")
        assert message["version"] == step
        assert message["lines"] == [
            {"behavior": 0, "signal": "score", "steps": [step], "values": [0.5]}
        ]
        assert len(json.dumps(message)) < 2000
    assert scores_of(follower.view()) == expected
    assert len(json.loads(follower.view())["changes"]) <= MAX_CHANGES
    writer.close()


def test_a_record_that_was_continued_elsewhere_starts_again(tmp_path: Path) -> None:
    writer, follower = follower_of(tmp_path / "run")
    at = writer.position()
    visit(writer, 5, 0.9)
    assert scores_of(follower.view()) == {0: 1.0, 5: 0.9}
    writer.resume_from(0, at)
    visit(writer, 5, 0.1)
    assert json.loads(follower.poll() or "")["restart"]
    assert scores_of(follower.view()) == {0: 1.0, 5: 0.1}
    writer.close()


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("no record " * 100)
    client = TestClient(make_app([tmp_path]), base_url=LOCAL)
    answer = client.get("/runs/1")
    assert answer.status_code == 503
    assert "not a readable record" in answer.json()["error"]


def test_runs_that_appear_get_the_next_numbers(tmp_path: Path) -> None:
    runs = Runs([tmp_path])
    assert not runs.followers
    for name in ("b", "a/inner"):
        Writer(tmp_path / name).close()
        assert [own.name for own in runs.refresh()] == [name]
    assert [own.name for own in runs.followers.values()] == ["b", "a/inner"]
    assert runs.refresh() == []


def append(folder: Path, start: Any) -> None:
    writer = Writer(folder, resume=True)
    start.wait(60)
    visit(writer, 1, 0.25)
    writer.add_alert(Alert(1, "a", Level.CRITICAL, "d", "m"))
    writer.close()


def test_events_arrive_while_another_process_writes(tmp_path: Path) -> None:
    writer, _ = follower_of(tmp_path / "run")
    writer.close()
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    process = context.Process(target=append, args=(tmp_path / "run", start))
    process.start()
    runs = Runs([tmp_path])
    stream = Stream(runs)

    async def read() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        async with stream.running(None):  # type: ignore[arg-type]
            async for text in stream.messages():
                for line in text.splitlines():
                    if line.startswith("data: "):
                        found.append(json.loads(line[6:]))
                if len(found) == 1:
                    runs.followers["1"].view()
                    start.set()
                if any(own.get("alerts") for own in found):
                    break
        return found

    found = asyncio.run(asyncio.wait_for(read(), 120))
    process.join(60)
    assert found[0]["runs"] == [{"key": "1", "name": "run", "version": 0}]
    lines = [line for own in found[1:] for line in own.get("lines", [])]
    assert [(line["steps"], line["values"]) for line in lines] == [([1], [0.25])]


def test_a_run_that_a_new_reader_finds_is_told_to_the_others(tmp_path: Path) -> None:
    stream = Stream(Runs([tmp_path]))

    async def told() -> str:
        first = stream.messages()
        await anext(first)
        Writer(tmp_path / "late").close()
        await anext(stream.messages())
        return await anext(first)

    assert '"name": "late"' in asyncio.run(asyncio.wait_for(told(), 60))


def test_a_reader_that_does_not_read_is_let_go(tmp_path: Path) -> None:
    stream = Stream(Runs([tmp_path]))

    async def fill() -> int:
        messages = stream.messages()
        await anext(messages)
        for _ in range(200):
            stream._publish("{}")
        return len([text async for text in messages])

    assert asyncio.run(fill()) == 64
    assert not stream._readers


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_of_the_polling_thread_ends_the_streams(tmp_path: Path) -> None:
    runs = Runs([tmp_path])
    app = make_app([tmp_path])
    stream = Stream(runs)

    def fail() -> None:
        raise ZeroDivisionError

    runs.refresh = fail  # type: ignore[assignment,method-assign]

    async def greet() -> str:
        return "{}"

    stream._greet = greet  # type: ignore[method-assign]

    async def read() -> list[str]:
        async with stream.running(app):
            return [text async for text in stream.messages()]

    assert len(asyncio.run(asyncio.wait_for(read(), 60))) == 1
    assert stream.has_failed


def test_a_hundred_thousand_steps_make_a_small_view(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "run", ["a"])
    writer = scene.writer
    random = np.random.default_rng(0)
    for start in range(0, 100_000, 1000):
        steps = range(start, start + 1000)
        writer.add_readings(
            [Reading(s, "a", "interference", float(random.normal())) for s in steps]
        )
        for step in steps[::20]:
            scene.visit(step, "a", random.normal(5, 1, 8).astype(np.float32))
    writer.add_readings([Reading(77_777, "a", "score", 0.125)])
    writer.close()
    client = TestClient(make_app([tmp_path]), base_url=LOCAL)
    answer = client.get("/runs/1")
    assert len(answer.content) < 60_000
    line = next(own for own in answer.json()["view"]["lines"] if own["signal"] == "score")
    assert (77_777, 0.125) in zip(line["steps"], line["values"], strict=True)


@pytest.mark.parametrize("text", ["</script><b>evil</b>", "\x1b[2Jevil\u202e", "a\nb", "é模型"])
def test_hostile_names_arrive_as_escaped_text(tmp_path: Path, text: str) -> None:
    scene = Scene(tmp_path / "run", [text], 6, texts=[text] * 20)
    for step in (0, 1):
        scene.visit(step, text, np.full(20, 5.0 - 9 * step))
        said = {"1": text, "2": f"{step}{text}"}
        scene.writer.add_event(step, "probe_answers", answers={text: said})
    scene.writer.add_alert(Alert(0, text, Level.WARNING, text, text))
    scene.writer.add_action(Action(0, text, "update", True, text))
    scene.writer.close()
    client = TestClient(make_app([tmp_path]), base_url=LOCAL)
    acts = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
    for path in ("/runs/1", "/runs/1/alerts/1", "/runs/1/probes/0/0"):
        answer = client.get(path)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"

        def texts(value: Any) -> Iterator[str]:
            if isinstance(value, str):
                yield value
            for part in value.values() if isinstance(value, dict) else ():
                yield from texts(part)
            for part in value if isinstance(value, list) else ():
                yield from texts(part)

        found = list(texts(answer.json()))
        escaped = (shorten(text), escape_control_chars(text))
        assert any(own in escaped for own in found), path
        assert not [own for own in found if acts.search(own)]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_printed_address_of_all_addresses_is_one_that_opens(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.bind((host, 0))
        listening.listen()
        own = address_to_open(host)
        assert own != host
        with socket.socket(family) as reader:
            reader.settimeout(10)
            reader.connect((own, listening.getsockname()[1]))
    assert address_to_open("127.0.0.1") == "127.0.0.1"


def test_only_pages_of_riprap_in_the_folder_of_a_run_are_served(folder: Path) -> None:
    mark = "<title>x · Riprap</title>"
    run = next(folder.rglob("record.sqlite")).parent
    (run / "out").mkdir()
    (run / "secret.html").write_text(mark)
    for place, name, beside, text in (
        (run, "preflight.html", "preflight.json", mark),
        (run, "audit.html", "audit.png", "<title>of somebody else</title>"),
        (run / "out", "report.html", "", mark),  # without a diagnosis beside it
        (run / "out", "preflight.html", "preflight.json", None),
    ):
        if text is None:
            (place / name).symlink_to(run / "secret.html")
        else:
            (place / name).write_text(text, encoding="utf-8")
        if beside:
            (place / beside).write_text("{}")
    client = TestClient(make_app([run]), base_url=LOCAL)
    assert client.get("/runs/1").json()["pages"] == [["preflight.html", "preflight"]]
    answer = client.get("/runs/1/pages/preflight.html")
    assert answer.text == mark
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "script-src" not in answer.headers["content-security-policy"]
    assert client.get("/runs/9/pages/preflight.html").status_code == 404
    for other in ("audit.html", "out/report.html", "out/preflight.html", "..%2fsecret.html", ""):
        assert client.get(f"/runs/1/pages/{other}").status_code == 404


def diagnosed(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "diagnosis.json").write_text("{}")
    (folder / "report.html").write_text(f"<title>x · Riprap</title>{text}", encoding="utf-8")


def test_links_to_pages_stay_true_while_pages_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riprap.dashboard._follower.PAGES_REST", 0.0)
    run = tmp_path / "run"
    typical(run, 20).writer.close()
    diagnosed(run / "b c", "the second")
    app = make_app([run])
    client = TestClient(app, base_url=LOCAL)
    ((place, kind),) = client.get("/runs/1").json()["pages"]
    assert kind == "diagnosis (b c)"
    diagnosed(run / "a", "the first")
    diagnosed(tmp_path / "elsewhere", "not of this run")
    (run / "linked").symlink_to(tmp_path / "elsewhere")
    assert client.get(f"/runs/1/pages/{place}").text.endswith("the second")
    view = client.get("/runs/1").json()
    assert [kind for _, kind in view["pages"]] == ["diagnosis (a)", "diagnosis (b c)"]
    follower = Follower(run / "record.sqlite", "1", "run")
    version = json.loads(follower.view())["view"]["version"]
    assert follower.poll() is None
    (run / "a" / "report.html").unlink()
    change = json.loads(follower.poll() or "{}")
    assert change["pages"] == [[place, kind]] and change["version"] == version + 1
    assert follower.poll() is None
    assert client.get("/runs/1/pages/a/report.html").status_code == 404
    assert client.get("/runs/1/pages/linked/report.html").status_code == 404


def test_a_result_that_changes_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riprap.dashboard._follower.PAGES_REST", 0.0)
    monkeypatch.setattr("riprap.dashboard._follower.CONCLUSION_REST", 0.0)
    run = tmp_path / "run"
    typical(run, 20).writer.close()
    result = run / "diagnosis" / "diagnosis.json"
    save_result({"run": None}, result)
    follower = Follower(run / "record.sqlite", "1", "run")
    assert "could not be read" not in follower.view()
    result.write_text("{")  # the same pages, other results
    assert (
        "diagnosis.json could not be read"
        in json.loads(follower.poll() or "{}")["conclusion"]["limits"]
    )


def test_a_run_with_what_json_cannot_hold_is_told_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, follower = follower_of(tmp_path)
    follower.view()
    monkeypatch.setattr(
        "riprap.dashboard._follower.new_rows", lambda *_: {"scores": [float("nan")]}
    )
    visit(writer, 40, 1.0)
    writer.flush()
    told = json.loads(follower.poll() or "{}")
    assert "JSON cannot" in told["error"] and told["restart"]


def test_a_page_that_goes_while_it_is_read_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typical(tmp_path / "run", 20).writer.close()
    gone = {"report.html": ("diagnosis", tmp_path / "run" / "report.html")}
    monkeypatch.setattr("riprap.dashboard._app.pages_of", lambda file: gone)
    client = TestClient(make_app([tmp_path]), base_url=LOCAL)
    assert client.get("/runs/1/pages/report.html").status_code == 404


def test_the_page_explains_its_words_by_the_glossary(client: TestClient) -> None:
    text = client.get("/").text
    assert "data-word" not in text
    assert WORDS["threshold margin"] in text
