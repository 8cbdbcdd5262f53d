"""Trackers for loops of your own: `Monitor(..., trackers=[TensorBoard("logs")])`.

A Trainer sends the monitor's numbers to its own trackers (`report_to`); it needs none of these.
Each class needs the package of its tracker.

- `TensorBoard`, `WandB`, `MLflow`, `Trackio`, `CSV`: numbers of each probe evaluation, and alerts.
- `Webhook`: alerts as JSON to a URL, such as an incoming webhook of Slack.
"""

from __future__ import annotations

import csv
import json
import math
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
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from riprap._checks import check_count, is_number, shown
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


def send_alert(alert: Alert, package: Any, target: Any) -> None:
    """Send an alert of W&B or trackio, for `warning` and `critical`.

    Args:
        package: wandb or trackio.
        target: what sends alerts: the package, or a run.
    """
    if alert.level is not Level.WATCH:
        levels = package.AlertLevel
        level = levels.ERROR if alert.level is Level.CRITICAL else levels.WARN
        target.alert(title=_title(alert), text=str(alert), level=level)


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
        send_alert(alert, self._wandb, self.run)


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
        self._names: dict[str, str] = {}  # MLflow's, by ours

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Log one metric for each number.

        Characters that MLflow refuses become `_`; a name that another one has already gets a
        number: `name_2`.
        """
        for name, value in numbers.items():
            self._client.log_metric(self.run_id, self._name(name), value, step=step)

    def alert(self, alert: Alert) -> None:
        """Set the tag `riprap.alert.<behavior>`."""
        name = self._name(f"riprap.alert.{alert.behavior or 'training'}")
        self._client.set_tag(self.run_id, name, str(alert)[:5000])

    def _name(self, name: str) -> str:
        if name not in self._names:
            allowed = re.sub(r"[^\w\-. /]", "_", name)
            free, count = allowed, 1
            while free in self._names.values():
                count += 1
                free = f"{allowed}_{count}"
            self._names[name] = free
        return self._names[name]


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
        send_alert(alert, self._trackio, self._trackio)


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


def _reason(error: Exception) -> str:
    """Say why a request failed, without its URL."""
    if isinstance(error, HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, URLError):
        return str(error.reason)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "the time was up" if isinstance(error, TimeoutError) else type(error).__name__


class Webhook(Tracker):
    """Alerts as JSON to a URL, from a thread of its own: training never waits for the network.

    The body is `{"text": "..."}`, which Slack, Mattermost and others take, with the fields of the
    alert beside it. What fails is tried again, and then given up with a warning. A copy has a queue
    of its own, which begins empty.

    Args:
        url: begins with https:// or http://.
        level: the mildest level that is sent.
        retries: further attempts, after 1, 2, 4 ... times `backoff` seconds.
        timeout: of one attempt, in seconds.

    Raises:
        ConfigError: the URL has another scheme or no host, the level does not exist, or a number is
            none that can be waited for.
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
        check_count("retries", retries, least=0)
        for name, seconds in (("backoff", backoff), ("timeout", timeout)):
            if not is_number(seconds) or not math.isfinite(seconds) or seconds < 0:
                raise ConfigError(f"{name}={shown(seconds)}: give seconds, of at least 0")
        if timeout == 0:
            raise ConfigError("timeout=0: give seconds, above 0")
        self._url, self._host, self._level = url, parts.hostname, Level(level)
        self._retries, self._backoff, self._timeout = retries, backoff, timeout
        self._begin()

    def _begin(self) -> None:
        self._waiting: deque[Alert] = deque()  # the first of them is being sent
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None  # sends what waits; None: nothing does

    def __getstate__(self) -> dict[str, Any]:
        own = ("_waiting", "_lock", "_thread")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def alert(self, alert: Alert) -> None:
        """Queue an alert."""
        if alert.level.rank < self._level.rank:
            return
        with self._lock:
            is_full = len(self._waiting) >= WAITING
            if not is_full:
                self._waiting.append(alert)
            if not self._is_sending():
                self._thread = threading.Thread(target=self._send_all, daemon=True)
                self._thread.start()
        if is_full:
            warn(f"an alert was not sent to {self._host}: {WAITING} others wait already")

    def flush(self) -> None:
        """Wait until the queue is empty, or for the time of all attempts at one alert at most.

        Warns of the alerts that are not sent by then.
        """
        last = time.monotonic() + (self._retries + 1) * self._timeout
        last += self._backoff * (2**self._retries - 1)
        while self._is_sending() and time.monotonic() < last:
            time.sleep(0.02)
        if count := len(self._waiting):
            text = f"{count} alert" + "s" * (count > 1)
            warn(f"not sent to {self._host} yet, and lost if the process ends now: {text}")

    def _is_sending(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _send_all(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                alert = self._waiting[0]
            try:
                self._send(alert)
            except Exception as error:  # noqa: BLE001 whatever it is, the next alert is sent
                # The URL of a webhook is a secret: only its host is named.
                warn(f"an alert was not sent to {self._host}: {_reason(error)}")
            finally:
                with self._lock:
                    self._waiting.popleft()

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
            except (OSError, HTTPException):
                if attempt == self._retries:
                    raise
            time.sleep(self._backoff * 2**attempt)
