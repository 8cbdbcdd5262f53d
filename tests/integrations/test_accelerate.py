"""The tracker for Accelerate: its numbers reach the other trackers, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from integrations.test_trackers import ROWS, margins_of, watching
from riprap import Monitor
from riprap.errors import ConfigError
from riprap.integrations.accelerate import MonitorTracker
from riprap.record import Reader
from tiny import make_llama

pytestmark = pytest.mark.filterwarnings("ignore:riprap. behavior")


class Listener(GeneralTracker):
    """A tracker of somebody's own."""

    name = "listener"
    requires_logging_directory = False
    tracker = None

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int | None, dict[str, Any]]] = []

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.seen.append((step, dict(values)))


def train(accelerator: Accelerator, tracker: MonitorTracker, steps: int = 6) -> Monitor:
    bare = make_llama()
    model, optimizer = accelerator.prepare(bare, torch.optim.SGD(bare.parameters(), lr=0.05))
    with tracker.watch(accelerator, model, optimizer, steps=steps) as monitor:
        for step in range(1, steps + 1):
            ids = ROWS[4 * step : 4 * step + 4]
            loss = model(ids, labels=ids).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            accelerator.log({"loss": loss.item(), "other": 3}, step=step)
    return monitor


def test_numbers_go_to_the_other_trackers_and_losses_into_the_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listener, tracker = Listener(), MonitorTracker(watching(run_dir=tmp_path / "run"))
    accelerator = Accelerator(cpu=True, log_with=[tracker, listener])
    accelerator.init_trackers("here")
    monitor = train(accelerator, tracker)
    sent = {s: v["riprap/words/margin"] for s, v in listener.seen if "riprap/words/margin" in v}
    expected = margins_of(monitor)
    # The evaluation before the first step is over before the trackers know of the watch.
    assert sent == pytest.approx(expected)
    assert accelerator.get_tracker("riprap", unwrap=True) is monitor
    with Reader(tmp_path / "run") as reader:
        told = [e["facts"] for e in reader.events() if e["kind"] == "training"]
    assert [facts["loss"] for facts in told] == [v["loss"] for _, v in listener.seen if "loss" in v]
    assert "6 steps watched" in caplog.text and (tmp_path / "run" / "report.html").is_file()


def test_what_is_no_number_is_left_out_and_said_once(tmp_path: Path) -> None:
    """Loops log None before the first loss, texts, and losses of each row."""
    tracker = MonitorTracker(watching(run_dir=tmp_path / "run"))
    accelerator = Accelerator(cpu=True, log_with=[tracker])
    accelerator.init_trackers("here")
    bare = make_llama()
    model, optimizer = accelerator.prepare(bare, torch.optim.SGD(bare.parameters(), lr=0.05))
    with (
        pytest.warns(UserWarning) as told,
        tracker.watch(accelerator, model, optimizer),
    ):
        for wrong in (None, "low", torch.ones(2), torch.tensor([0.5]), np.float32(0.25)):
            accelerator.log({"train_loss": wrong, "lr": 0.05})
    texts = [str(own.message) for own in told if "is no number" in str(own.message)]
    assert len(texts) == 1 and "train_loss=None" in texts[0]
    with Reader(tmp_path / "run") as reader:
        found = [e["facts"] for e in reader.events() if e["kind"] == "training"]
    assert found == [{"learning_rate": 0.05}] * 3 + [
        {"loss": loss, "learning_rate": 0.05} for loss in (0.5, 0.25)
    ]


def test_only_a_checkpoint_that_was_written_is_recorded(tmp_path: Path) -> None:
    tracker = MonitorTracker(watching(run_dir=tmp_path / "run"))
    accelerator = Accelerator(cpu=True, log_with=[tracker])
    accelerator.init_trackers("here")
    bare = make_llama()
    model, optimizer = accelerator.prepare(bare, torch.optim.SGD(bare.parameters(), lr=0.05))

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with tracker.watch(accelerator, model, optimizer):
        for step in range(1, 4):
            accelerator.backward(model(ROWS[:4], labels=ROWS[:4]).loss)
            optimizer.step()
            optimizer.zero_grad()
            if step == 2:
                with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="space"):
                    patch.setattr("accelerate.accelerator.save_accelerator_state", full)
                    accelerator.save_state(str(tmp_path / "torn"))
                accelerator.save_state(str(tmp_path / "first"))
                accelerator.save_state(str(tmp_path / "second"))
        accelerator.save_state(str(tmp_path / "last"))
    assert (tmp_path / "torn" / "riprap.safetensors").is_file()
    with Reader(tmp_path / "run") as reader:
        saved = [e for e in reader.events() if e["kind"] == "checkpoint"]
    found = [(own["step"], Path(own["facts"]["path"]).name) for own in saved]
    assert found == [(2, "first"), (2, "second"), (3, "last")]
    assert "second" in saved[0]["facts"]["kept"]


def test_a_tracker_that_the_accelerator_does_not_know_is_refused() -> None:
    tracker = MonitorTracker(watching())
    accelerator = Accelerator(cpu=True)
    with pytest.raises(ConfigError, match=r"none of the accelerator's trackers.*log_with"):
        train(accelerator, tracker)
    assert tracker.monitor.step == 0


def test_wrong_objects_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"MonitorTracker needs a Monitor.*MonitorTracker\("):
        MonitorTracker([])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got a int as checkpoint"):
        MonitorTracker(watching(), checkpoint=3)  # type: ignore[arg-type]
    tracker = MonitorTracker(watching())
    with pytest.raises(ConfigError, match="as accelerator: give the accelerate"):
        tracker.watch(None, make_llama(), None).__enter__()  # type: ignore[arg-type]


def test_a_number_that_is_none_is_refused_in_a_plain_loop() -> None:
    monitor = watching()
    with pytest.raises(ConfigError, match="log_training: loss='low' is no number"):
        monitor.log_training(loss="low")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"trackers: .* is no tracker"):
        monitor.add_tracker("wandb")  # type: ignore[arg-type]
