"""Trackers of a plain loop: what they wrote is read back by the trackers' own packages."""

from __future__ import annotations

import copy
import csv
import http.server
import json
import pickle
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from http.client import InvalidURL
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn

from dial import below, reading, turn
from loops import flat, task, train
from riprap import AlertPolicy, Behavior, Monitor
from riprap.errors import ConfigError
from riprap.integrations import trackers
from riprap.monitor import Tracker
from riprap.types import Alert, Level

LEVELS = [below(1.5, Level.WATCH), below(1.0, Level.WARNING), below(0.5, Level.CRITICAL)]
VALUES = [2, 1.4, 0.9, 0.4]  # of the margin, by step
SCORE, MARGIN = "riprap/b/score", "riprap/b/margin"


def watched(*sinks: Tracker, values: list[float] = VALUES) -> Monitor:
    """Watch three steps; the alerts rise through all levels."""
    policy = AlertPolicy(name="t", detectors=LEVELS)
    monitor = Monitor([reading("b")], policy=policy, probe_every=1, trackers=list(sinks))
    turn(monitor, values)
    return monitor


def test_csv(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "numbers.csv"
    monitor = watched(trackers.CSV(file))
    with file.open(newline="") as rows:
        found = list(csv.DictReader(rows))
    margins = {int(r["step"]): float(r["value"]) for r in found if r["name"] == MARGIN}
    recorded = monitor.history().query("signal == 'margin'")
    assert margins == dict(zip(recorded.step, recorded.value, strict=True))
    assert list(margins) == [0, 1, 2, 3]
    alerts = [(int(r["step"]), r["value"]) for r in found if r["name"] == "riprap/b/alert"]
    assert alerts == [(1, "watch"), (2, "warning"), (3, "critical")]
    watched(trackers.CSV(file))
    assert file.read_text().count("step,name,value") == 1


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watched(trackers.TensorBoard(tmp_path))
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    scalars = {event.step: event.value for event in found.Scalars(MARGIN)}
    assert scalars == pytest.approx(dict(enumerate(VALUES)))
    texts = found.Tensors("riprap/alerts/text_summary")
    assert [event.step for event in texts] == [1, 2, 3]
    assert b"critical" in texts[-1].tensor_proto.string_val[0]


def wandb_records(file: Path) -> Iterator[Any]:
    """Read an offline run: a log of LevelDB's form, in blocks of 32 KiB, after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(ConfigError, match=r"call wandb\.init\(\) first"):
        trackers.WandB()
    run = wandb.init(mode="offline", dir=str(tmp_path), project="riprap")
    run.log({"loss": 1.0})
    watched(trackers.WandB())
    run.log({"loss": 0.5})
    run.finish()
    wandb.teardown()  # its service has then written the file
    (file,) = tmp_path.rglob("*.wandb")
    records = list(wandb_records(file))
    rows = [
        {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    titles = [r.alert.title for r in records if r.WhichOneof("record_type") == "alert"]
    own = {row["riprap/step"]: row[MARGIN] for row in rows if MARGIN in row}
    assert own == pytest.approx(dict(enumerate(VALUES)))
    assert [row["loss"] for row in rows if "loss" in row] == [1.0, 0.5]
    assert titles == ["riprap: b is warning", "riprap: b is critical"]


def test_mlflow_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    mlflow.set_experiment("riprap")
    with pytest.raises(ConfigError, match=r"call mlflow\.start_run\(\) first"):
        trackers.MLflow()
    with mlflow.start_run() as run:
        watched(trackers.MLflow())
    client = mlflow.MlflowClient()
    found = client.get_metric_history(run.info.run_id, MARGIN)
    assert {m.step: m.value for m in found} == pytest.approx(dict(enumerate(VALUES)))
    tags = client.get_run(run.info.run_id).data.tags
    assert "step 3, critical" in tags["riprap.alert.b"]
    trackers.MLflow(run.info.run_id).log({"riprap/a\n(b)?/score": 1.0}, 5)
    assert "riprap/a__b__/score" in client.get_run(run.info.run_id).data.metrics


def test_names_that_mlflow_cannot_tell_apart_are_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    mlflow.set_experiment("riprap")
    with mlflow.start_run() as run:
        sink = trackers.MLflow()
        for step in (0, 1):
            sink.log({"riprap/a?/score": 0.25 + step, "riprap/a!/score": 0.5 + step}, step)
        for name in ("a?", "a!"):
            sink.alert(Alert(1, name, Level.CRITICAL, "forecast", "why"))
    client = mlflow.MlflowClient()
    for name, values in (("riprap/a_/score", [0.25, 1.25]), ("riprap/a_/score_2", [0.5, 1.5])):
        found = client.get_metric_history(run.info.run_id, name)
        assert [one.value for one in found] == values
    tags = client.get_run(run.info.run_id).data.tags
    assert "a?" in tags["riprap.alert.a_"] and "a!" in tags["riprap.alert.a__2"]


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trackio = pytest.importorskip("trackio")
    logged: list[dict[str, Any]] = []
    alerts: list[tuple[str, str]] = []
    monkeypatch.setattr(trackio, "log", lambda numbers, step=None: logged.append(dict(numbers)))
    monkeypatch.setattr(
        trackio, "alert", lambda title, text, level: alerts.append((title, str(level)))
    )
    watched(trackers.Trackio())
    assert [row["riprap/step"] for row in logged] == [0, 1, 2, 3]
    assert [title for title, _ in alerts] == ["riprap: b is warning", "riprap: b is critical"]


class Receiver(http.server.BaseHTTPRequestHandler):
    """Answers with the codes of the server, the last of them from then on; keeps the bodies."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        codes: list[int] = self.server.codes  # type: ignore[attr-defined]
        code = codes.pop(0) if len(codes) > 1 else codes[0]
        self.server.got.append((code, json.loads(body)))  # type: ignore[attr-defined]
        self.send_response(code)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    made: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    made.codes, made.got = [200], []
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def webhook(server: Any, **options: Any) -> trackers.Webhook:
    return trackers.Webhook(f"http://127.0.0.1:{server.server_port}/secret", **options)


def test_a_webhook_tries_again_until_the_server_takes_the_alert(server: Any) -> None:
    server.codes = [500, 503, 200]
    watched(webhook(server, backoff=0.01))
    assert [code for code, _ in server.got] == [500, 503, 200, 200]
    assert [body["level"] for _, body in server.got] == ["warning"] * 3 + ["critical"]
    body = server.got[-1][1]
    assert body["text"].startswith("riprap: b is critical\nstep 3, critical: b:")
    assert (body["step"], body["behavior"]) == (3, "b")


def test_a_webhook_that_nobody_takes_is_given_up_and_training_goes_on(server: Any) -> None:
    server.codes = [500]
    with pytest.warns(UserWarning, match=r"127\.0\.0\.1: the server answered 500") as told:
        monitor = watched(webhook(server, backoff=0.01, retries=1, level="critical"))
    assert monitor.step == 3
    assert len(server.got) == 2
    assert not any("secret" in str(one.message) for one in told)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (URLError(ConnectionRefusedError(111, "Connection refused")), "Connection refused"),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (TimeoutError(), "the time was up"),
        (InvalidURL("nonnumeric port: 'secret'"), "InvalidURL"),
    ],
)
def test_the_warning_of_a_webhook_says_why(server: Any, error: Exception, says: str) -> None:
    sink = webhook(server)

    def fail(alert: Alert) -> None:
        raise error

    sink._send = fail  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="was not sent") as told:
        sink.alert(Alert(1, "b", Level.CRITICAL, "forecast", "why"))
        sink.flush()
    (text,) = [str(one.message) for one in told]
    assert says in text and "secret" not in text


def test_training_does_not_wait_for_a_webhook(server: Any) -> None:
    sink = webhook(server)
    gate = threading.Event()
    sink._send = lambda alert: gate.wait(10)  # type: ignore[method-assign,assignment]
    alert = Alert(1, "b", Level.CRITICAL, "forecast", "why")
    with pytest.warns(UserWarning, match="others wait already"):
        for _ in range(trackers.WAITING + 5):
            sink.alert(alert)  # returns at once, though nothing is sent
    gate.set()


def test_a_copy_of_a_monitor_sends_its_own_alerts(server: Any) -> None:
    monitor = Monitor([reading("b")], trackers=[webhook(server)])
    (copied,) = copy.deepcopy(monitor)._run.trackers._trackers
    sinks = [copied, pickle.loads(pickle.dumps(webhook(server)))]
    for step, sink in enumerate(sinks):
        sink.alert(Alert(step, "b", Level.CRITICAL, "forecast", "why"))
        sink.flush()
    assert [body["step"] for _, body in server.got] == [0, 1]


def test_what_still_waits_after_a_flush_is_said(server: Any) -> None:
    sink = webhook(server, retries=0, timeout=0.05)
    gate = threading.Event()
    sink._send = lambda alert: gate.wait(10)  # type: ignore[method-assign,assignment]
    for step in range(2):
        sink.alert(Alert(step, "b", Level.CRITICAL, "forecast", "why"))
    with pytest.warns(UserWarning, match=r"127\.0\.0\.1 yet, and lost .* now: 2 alert"):
        sink.flush()
    gate.set()


def test_any_failure_is_said_and_the_next_alert_is_sent(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = webhook(server)
    alert = Alert(1, "b", Level.CRITICAL, "forecast", "why")
    with monkeypatch.context() as patch:
        patch.setattr(trackers.json, "dumps", lambda facts: 1 / 0)
        with pytest.warns(UserWarning, match=r"127\.0\.0\.1: ZeroDivisionError"):
            sink.alert(alert)
            sink.flush()
    sink.alert(alert)
    sink.flush()
    assert len(server.got) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_replaced(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = webhook(server)
    alert = Alert(1, "b", Level.CRITICAL, "forecast", "why")
    with monkeypatch.context() as patch:
        patch.setattr(trackers.json, "dumps", lambda facts: sys.exit())
        sink.alert(alert)
        sink.flush()
    sink.alert(alert)
    sink.flush()
    assert len(server.got) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"retries": -1}, "retries=-1: give a whole number of at least 0"),
        ({"retries": 1.5}, r"retries=1\.5: give a whole number"),
        ({"backoff": -1.0}, r"backoff=-1\.0: give seconds"),
        ({"timeout": float("nan")}, "timeout=nan: give seconds"),
        ({"timeout": 0}, "timeout=0: give seconds, above 0"),
    ],
)
def test_numbers_that_cannot_be_waited_for_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        trackers.Webhook("https://host/x", **given)


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "file:///etc/passwd", "hooks.slack.com/x", "http://"]
)
def test_a_webhook_needs_a_url(url: str) -> None:
    with pytest.raises(ConfigError, match="begins with https"):
        trackers.Webhook(url)


class Failing(Tracker):
    def __init__(self) -> None:
        self.calls = 0

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.calls += 1
        raise OSError("no space is left")


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    failing, file = Failing(), tmp_path / "numbers.csv"
    with pytest.warns(UserWarning, match="tracker Failing gets nothing more"):
        monitor = watched(failing, trackers.CSV(file))
    assert failing.calls == 1
    assert file.read_text().count(SCORE) == len(VALUES)
    errors = monitor.history().query("state == 'ERROR'")
    assert errors.detail.str.contains("no space is left").any()


def test_what_is_no_tracker_is_refused() -> None:
    with pytest.raises(ConfigError, match="trackers: 'csv' is no tracker"):
        Monitor([reading()], trackers="csv")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the class CSV is no tracker"):
        Monitor([reading()], trackers=[trackers.CSV])  # type: ignore[list-item]


def test_training_with_trackers_is_bit_identical(
    learned: nn.Module, memory: Behavior, tmp_path: Path
) -> None:
    def weights(*sinks: Tracker) -> np.ndarray:
        model = copy.deepcopy(learned)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        with Monitor([memory], probe_every=1, trackers=sinks).watch(model, optimizer):
            train(model, optimizer, task(4))
        return flat(model)

    assert np.array_equal(weights(), weights(trackers.CSV(tmp_path / "n.csv")))
