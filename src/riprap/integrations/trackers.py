"""Trackers for loops of your own: `Monitor(..., trackers=[TensorBoard("logs")])`.

A Trainer sends the monitor's numbers to its own trackers (`report_to`); it needs none of these.
Each class needs the package of its tracker.

- `TensorBoard`, `WandB`, `MLflow`, `Trackio`, `CSV`: numbers of each probe evaluation, and alerts.
- `Webhook`: alerts as JSON to a URL, such as an incoming webhook of Slack.
"""

from __future__ import annotations

import csv
import json
import re
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Mapping
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from riprap._extras import is_installed
from riprap._warnings import warn
from riprap.errors import ConfigError, MissingExtraError
from riprap.monitor import Tracker
from riprap.types import Alert, Level

__all__ = ["CSV", "MLflow", "TensorBoard", "Trackio", "WandB", "Webhook"]

WAITING = 100  # alerts that may wait for a webhook; of more a warning tells


def _load(module: str) -> Any:
    """Import the package of a tracker.

    Raises:
        MissingExtraError: it is not installed.
    """
    package = module.partition(".")[0]
    if not is_installed(package):
        raise MissingExtraError(f"{package} is not installed: run pip install {package}")
    return import_module(module)


def _title(alert: Alert) -> str:
    return f"riprap: {alert.behavior or 'training'} is {alert.level}"


class TensorBoard(Tracker):
    """Scalars and texts in TensorBoard.

    Args:
        writer: folder of the logs, or a `SummaryWriter` of yours.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, writer: str | Path | Any) -> None:
        if isinstance(writer, str | Path):
            _load("tensorboard")
            writer = _load("torch.utils.tensorboard").SummaryWriter(str(writer))
        self.writer = writer

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Write one scalar for each number."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def alert(self, alert: Alert) -> None:
        """Write the alert as a text."""
        self.writer.add_text("riprap/alerts", str(alert), alert.step)

    def flush(self) -> None:
        """Write to the file."""
        self.writer.flush()


class WandB(Tracker):
    """A run of Weights & Biases, with its alerts.

    The numbers have an axis of their own, `riprap/step`, so that they may come between the rows of
    your own `log` calls.

    Args:
        run: the run; None: the active one.

    Raises:
        MissingExtraError: wandb is not installed.
        ConfigError: there is no active run.
    """

    def __init__(self, run: Any = None) -> None:
        self._wandb = _load("wandb")
        self.run = self._wandb.run if run is None else run
        if self.run is None:
            raise ConfigError("W&B has no active run: call wandb.init() first, or give the run")
        self.run.define_metric("riprap/step")
        self.run.define_metric("riprap/*", step_metric="riprap/step")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Log one row."""
        self.run.log({**numbers, "riprap/step": step})

    def alert(self, alert: Alert) -> None:
        """Send an alert of W&B, for `warning` and `critical`."""
        if alert.level is not Level.WATCH:
            levels = self._wandb.AlertLevel
            level = levels.ERROR if alert.level is Level.CRITICAL else levels.WARN
            self.run.alert(title=_title(alert), text=str(alert), level=level)


class MLflow(Tracker):
    """Metrics in a run of MLflow; the latest alert of a behavior is a tag.

    Args:
        run_id: the run; None: the active one.

    Raises:
        MissingExtraError: mlflow is not installed.
        ConfigError: there is no active run.
    """

    def __init__(self, run_id: str | None = None) -> None:
        mlflow = _load("mlflow")
        active = mlflow.active_run()
        if run_id is None and active is None:
            raise ConfigError(
                "MLflow has no active run: call mlflow.start_run() first, or give the run_id"
            )
        self.run_id = active.info.run_id if run_id is None else run_id
        self._client = mlflow.MlflowClient()

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Log one metric for each number; characters that MLflow refuses become `_`."""
        for name, value in numbers.items():
            self._client.log_metric(self.run_id, _mlflow_name(name), value, step=step)

    def alert(self, alert: Alert) -> None:
        """Set the tag `riprap.alert.<behavior>`."""
        name = _mlflow_name(alert.behavior or "training")
        self._client.set_tag(self.run_id, f"riprap.alert.{name}", str(alert)[:5000])


def _mlflow_name(name: str) -> str:
    return re.sub(r"[^\w\-. /]", "_", name)


class Trackio(Tracker):
    """The active run of trackio, with its alerts.

    Raises:
        MissingExtraError: trackio is not installed.
    """

    def __init__(self) -> None:
        self._trackio = _load("trackio")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Log one row."""
        self._trackio.log({**numbers, "riprap/step": step})

    def alert(self, alert: Alert) -> None:
        """Send an alert of trackio, for `warning` and `critical`."""
        if alert.level is not Level.WATCH:
            levels = self._trackio.AlertLevel
            level = levels.ERROR if alert.level is Level.CRITICAL else levels.WARN
            self._trackio.alert(title=_title(alert), text=str(alert), level=level)


class CSV(Tracker):
    """A CSV file with the columns step, name, value; an alert is a row with its level as value.

    Rows are appended to an existing file, and are in it at once.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists() or not self.path.stat().st_size:
                self._append([("step", "name", "value")])
        except OSError as error:
            raise ConfigError(f"cannot write {self.path}: {error}") from error

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Append one row for each number."""
        self._append([(step, name, repr(float(value))) for name, value in numbers.items()])

    def alert(self, alert: Alert) -> None:
        """Append one row, named `riprap/<behavior>/alert`."""
        name = f"riprap/{alert.behavior or 'training'}/alert"
        self._append([(alert.step, name, str(alert.level))])

    def _append(self, rows: list[tuple[Any, ...]]) -> None:
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)


class Webhook(Tracker):
    """Alerts as JSON to a URL, from a thread of its own: training never waits for the network.

    The body is `{"text": "..."}`, which Slack, Mattermost and others take, with the fields of the
    alert beside it. What fails is tried again, and then given up with a warning.

    Args:
        url: begins with https:// or http://.
        level: the mildest level that is sent.
        retries: further attempts, after 1, 2, 4 ... times `backoff` seconds.
        timeout: of one attempt, in seconds.

    Raises:
        ConfigError: the URL has another scheme or no host, or the level does not exist.
    """

    def __init__(
        self,
        url: str,
        level: Level | str = Level.WARNING,
        retries: int = 3,
        backoff: float = 1.0,
        timeout: float = 10.0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("the URL of a webhook begins with https:// or http:// and has a host")
        if level not in list(Level):
            raise ConfigError(f"level={level!r}: choose one of {', '.join(Level)}")
        self._url, self._host, self._level = url, parts.hostname, Level(level)
        self._retries, self._backoff, self._timeout = retries, backoff, timeout
        self._waiting: deque[Alert] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None  # sends what waits; None: nothing does

    def alert(self, alert: Alert) -> None:
        """Queue an alert."""
        if alert.level.rank < self._level.rank:
            return
        with self._lock:
            is_full = len(self._waiting) >= WAITING
            if not is_full:
                self._waiting.append(alert)
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_all, daemon=True)
                self._thread.start()
        if is_full:
            warn(f"an alert was not sent to {self._host}: {WAITING} others wait already")

    def flush(self) -> None:
        """Wait until the queue is empty, or for the time of all attempts at one alert at most."""
        last = time.monotonic() + (self._retries + 1) * self._timeout
        last += self._backoff * (2**self._retries - 1)
        while self._thread is not None and time.monotonic() < last:
            time.sleep(0.02)

    def _send_all(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                alert = self._waiting.popleft()
            self._send(alert)

    def _send(self, alert: Alert) -> None:
        facts = {"text": f"{_title(alert)}\n{alert}", "step": alert.step}
        facts |= {"behavior": alert.behavior, "level": str(alert.level), "message": alert.message}
        body = json.dumps(facts).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "riprap"}
        for attempt in range(self._retries + 1):
            request = urllib.request.Request(self._url, body, headers)
            try:
                with urllib.request.urlopen(request, timeout=self._timeout):
                    return
            except (OSError, HTTPException) as error:
                problem = error
            if attempt < self._retries:
                time.sleep(self._backoff * 2**attempt)
        # The URL of a webhook is a secret: only its host is named.
        warn(f"an alert was not sent to {self._host}: {type(problem).__name__}")
