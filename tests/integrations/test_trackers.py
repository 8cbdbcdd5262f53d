"""The monitor's numbers reach every tracker at their own step, and never the caller's results."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import default_compute_objective

from riprap import Behavior, Monitor
from riprap.integrations import trackers as sinks
from riprap.integrations._trainer import TrackerLink
from riprap.integrations.hf import MonitorCallback
from riprap.types import Alert, Level
from tiny import make_llama

pytestmark = pytest.mark.filterwarnings("ignore:riprap. behavior")

IDS = torch.randint(3, 47, (12, 6), generator=torch.Generator().manual_seed(4))
ROWS = torch.randint(3, 47, (64, 9), generator=torch.Generator().manual_seed(2))
KEYS = {"riprap/words/score", "riprap/words/margin"}


def watching(**options: Any) -> Monitor:
    with torch.no_grad():
        targets = make_llama().eval()(IDS).logits[:, -1].argmax(-1)
    return Monitor([Behavior.next_token("words", IDS, targets)], **({"probe_every": 3} | options))


def training(folder: Path, callbacks: list[Any], model: Any = None, **options: Any) -> Trainer:
    settings = {
        "max_steps": 11,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 4,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
    }
    rows = [{"input_ids": row, "labels": row} for row in ROWS]
    arguments = TrainingArguments(output_dir=str(folder), **(settings | options))
    given = (
        {"model_init": lambda: make_llama()}
        if model == "init"
        else {"model": model or make_llama()}
    )
    return Trainer(
        args=arguments, train_dataset=rows, eval_dataset=rows[:8], callbacks=callbacks, **given
    )


def margins_of(monitor: Monitor) -> dict[int, float]:
    margins = monitor.history().query("signal == 'margin'")
    return dict(zip(margins.step, margins.value, strict=True))


class Listener(TrainerCallback):
    """A tracker of somebody's own: it takes all logs, changes them, and ends them when it likes."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, Any]]] = []
        self.open = False

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.open = True

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.open = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        assert self.open
        self.seen.append((state.global_step, dict(logs)))
        logs.clear()

    def margins(self) -> dict[int, float]:
        found = [
            (step, logs["riprap/words/margin"]) for step, logs in self.seen if KEYS & set(logs)
        ]
        assert len(found) == len(dict(found)), "an evaluation was sent twice"
        return dict(found)


@pytest.mark.parametrize("logging", [1, 4, 500])
def test_every_evaluation_reaches_all_callbacks_at_its_step(tmp_path: Path, logging: int) -> None:
    monitor, before, after = watching(), Listener(), Listener()
    made = training(tmp_path, [before, MonitorCallback(monitor), after], logging_steps=logging)
    made.train()
    expected = pytest.approx(margins_of(monitor))
    assert sorted(expected.expected) == [*range(9), 10, 11]
    assert before.margins() == expected
    assert after.margins() == expected
    kept = [entry for entry in made.state.log_history if KEYS & set(entry)]
    assert {entry["step"]: entry["riprap/words/margin"] for entry in kept} == expected
    assert [entry["step"] for entry in kept] == sorted(entry["step"] for entry in kept)
    assert "train_runtime" in made.state.log_history[-1]  # the last entry is the trainer's own
    losses = [entry for entry in made.state.log_history if "loss" in entry]
    assert len(losses) == 11 // logging


def test_results_and_logs_of_the_trainer_are_left_as_they_are(tmp_path: Path) -> None:
    found = []
    for callbacks in ([], [MonitorCallback(watching())]):
        made = training(tmp_path, callbacks, eval_strategy="steps", eval_steps=5)
        trained, evaluated = made.train().metrics, made.evaluate()
        ours = [entry for entry in made.state.log_history if not KEYS & set(entry)]
        found.append((set(trained), set(evaluated), [set(entry) for entry in ours]))
        assert default_compute_objective(dict(evaluated)) == evaluated["eval_loss"]
    assert found[0] == found[1]


def test_a_callback_that_cannot_take_the_numbers_ends_nothing(tmp_path: Path) -> None:
    class Strict(Listener):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not {"loss", "train_runtime"} & set(logs):
                raise KeyError("loss")
            self.seen.append((state.global_step, dict(logs)))

    strict, listener = Strict(), Listener()
    made = training(tmp_path, [strict, MonitorCallback(watching()), listener])
    with pytest.warns(UserWarning, match="Strict gets no numbers of the monitor") as said:
        made.train()
    assert sum("Strict" in str(one.message) for one in said) == 1
    assert [step for step, _ in strict.seen] == [4, 8, 11]
    assert len(listener.margins()) == 11


def test_the_console_shows_the_latest_numbers_beside_each_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = watching()
    training(tmp_path, [MonitorCallback(monitor)]).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if "riprap/words" in line]
    margins = margins_of(monitor)
    assert len(lines) == 2
    for line, step in zip(lines, (4, 8), strict=True):
        assert f"'{margins[step]:.4g}'" in line
        assert f"'riprap/read_at_step': {step}" in line.replace(f"'{step}'", str(step))


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = watching()
    options = {"report_to": "tensorboard"}
    environment = {"TENSORBOARD_LOGGING_DIR": str(tmp_path / "board")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        training(tmp_path, [MonitorCallback(monitor)], **options).train()
    (file,) = tmp_path.rglob("events.out.tfevents*")
    events = EventAccumulator(str(file.parent))
    events.Reload()
    found = {one.step: one.value for one in events.Scalars("train/riprap/words/margin")}
    assert found == pytest.approx(margins_of(monitor), rel=1e-5)
    assert len(events.Scalars("train/riprap/words/score")) == len(found)


TRACKIO = """
    import json, sys
    from pathlib import Path
    from integrations.test_trackers import margins_of, training, watching
    from riprap.integrations.hf import MonitorCallback
    from trackio.sqlite_storage import SQLiteStorage

    monitor = watching()
    options = {"report_to": "trackio", "project": "mine", "run_name": "first", "max_steps": 30}
    training(Path(sys.argv[1]), [MonitorCallback(monitor)], learning_rate=0.05, **options).train()
    logs = [l for l in SQLiteStorage.get_logs("mine", "first") if "train/riprap/words/margin" in l]
    print("FOUND", json.dumps({
        "logged": {l["train/global_step"]: l["train/riprap/words/margin"] for l in logs},
        "margins": margins_of(monitor),
        "alerts": [a["title"] for a in SQLiteStorage.get_alerts("mine")],
        "raised": [str(a.level) for a in monitor.alerts if a.level != "watch"],
    }))
"""


@pytest.mark.slow
def test_trackio(tmp_path: Path) -> None:
    """In a process of its own: trackio reads its folder when it is imported."""
    import json

    pytest.importorskip("trackio")
    paths = {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(TRACKIO), str(tmp_path)]
    done = subprocess.run(
        command, env=os.environ | paths, capture_output=True, text=True, timeout=300, check=False
    )
    (line,) = [one for one in done.stdout.splitlines() if one.startswith("FOUND ")] or [done.stderr]
    found = json.loads(line.removeprefix("FOUND "))
    assert found["logged"] == pytest.approx(found["margins"])
    assert len(found["logged"]) > 10
    assert found["raised"]
    assert len(found["alerts"]) == len(found["raised"])
    assert "riprap: words is critical" in found["alerts"]


def test_a_trainer_and_a_loop_send_the_same_alert(monkeypatch: pytest.MonkeyPatch) -> None:
    """Title, text and level, whether a trainer's callback or a tracker sends it."""
    sent: list[dict[str, Any]] = []
    package = SimpleNamespace(
        AlertLevel=SimpleNamespace(ERROR="ERROR", WARN="WARN"),
        alert=lambda **facts: sent.append(facts),
        define_metric=lambda *_, **__: None,
    )
    package.run = package
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setattr(sinks, "_load", lambda name: package)
    link = TrackerLink()
    monkeypatch.setattr(link, "_callbacks", lambda: [type("WandbCallback", (), {})()])
    for behavior, level in (("b", Level.CRITICAL), ("", Level.WARNING), ("b", Level.WATCH)):
        alert = Alert(7, behavior, level, "forecast", "why")
        link.send_alert(alert)
        sinks.WandB().alert(alert)
    assert len(sent) == 4
    assert sent[0] == sent[1] and sent[2] == sent[3]
    assert sent[0]["level"] == "ERROR" and sent[0]["text"].count("step 7") == 1
    assert sent[2]["title"] == "riprap: training is warning"


def test_a_search_by_the_default_objective_is_unchanged(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rates = [1e-5, 1e-2, 3e-1]
    best = []
    for callbacks in ([], [MonitorCallback(watching())]):
        made = training(tmp_path, callbacks, "init", max_steps=4, eval_strategy="steps")
        sampler = optuna.samplers.GridSampler({"learning_rate": rates}, seed=0)
        best.append(
            made.hyperparameter_search(
                direction="minimize",
                backend="optuna",
                n_trials=3,
                hp_space=lambda t: {"learning_rate": t.suggest_categorical("learning_rate", rates)},
                sampler=sampler,
            )
        )
    assert best[0].hyperparameters == best[1].hyperparameters
    assert best[0].objective == best[1].objective
