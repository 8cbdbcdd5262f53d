"""A run that is killed during a rollback and resumed ends as an uninterrupted one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import resuming
from guards.cases import Run, lessons, monitor_of
from riprap import guards
from riprap.guards.weights._checkpoint_ring import CheckpointRing
from riprap.guards.weights._training_snapshot import TrainingSnapshot
from riprap.monitor._alert_tracker import AlertTracker
from riprap.record import Reader, load_state
from riprap.types import Action

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:riprap. guard rollback")]
STEPS, SAVES, RATE = 20, 4, 0.3
# At the call of that number the process dies; rollbacks are at steps 3, 4, 6 and 13.
HARMED = {
    "before a checkpoint is written": (CheckpointRing, "_write", 6),
    "before its file has its name": (Path, "replace", 6),
    "before the oldest goes": (CheckpointRing, "_prune", 6),
    "before anything is put back": (TrainingSnapshot, "restore", 3),
    "with the weights back and the moments not": (TrainingSnapshot, "_restore_optimizer_state", 17),
    "before the rates are cut": (TrainingSnapshot, "scale_lr", 3),
    "before the probes are visited again": (AlertTracker, "rewind", 3),
}


def train(folder: Path) -> list[torch.Tensor]:
    """From the newest checkpoint, or from the start; weights in the end."""
    run = Run(
        guards.Rollback(every=2, checkpoint_dir=folder / "ring", keep_learning=False), rate=RATE
    )
    run.monitor = monitor_of(run_dir=folder / "run", resume=True)
    found, done = resuming.checkpoints(folder), 0
    if found:
        rest = torch.load(found[-1] / "rest.pt", weights_only=True)
        run.model.load_state_dict(rest["model"])
        run.optimizer.load_state_dict(rest["optimizer"])
        torch.set_rng_state(rest["generator"])
        done = rest["step"]
        run.monitor.load_state_dict(load_state(found[-1] / "monitor.safetensors"))
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        for step in range(done + 1, STEPS + 1):
            run.step(*lessons(STEPS)[step - 1])
            if step % SAVES == 0:
                resuming.save(folder, step, run.model, run.optimizer, run.monitor)
    run.monitor.record.close()
    return run.weights()


def dying(original: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """The same, but the process is gone before the call of that number."""
    made = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal made
        made += not (original is Path.replace and "rollback" not in arguments[0].name)
        if made == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    return call


def child(folder: Path, where: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    owner, name, calls = HARMED[where]
    setattr(owner, name, dying(getattr(owner, name), calls))
    train(folder)


def actions(folder: Path) -> list[Action]:
    with Reader(folder / "run") as reader:
        return reader.actions()


def told(folder: Path) -> list[tuple[Any, ...]]:
    return [(a.step, a.guard, a.applied, a.detail, a.before, a.after) for a in actions(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> tuple[Path, list[torch.Tensor]]:
    folder = tmp_path_factory.mktemp("whole")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return folder, train(folder)


@pytest.mark.parametrize("where", HARMED)
def test_a_killed_run_ends_with_the_same_weights(where: str, whole: Any, tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=child, args=(tmp_path, where))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert resuming.checkpoints(tmp_path), "it died before there was anything to take up"
    assert sum(action.applied for action in actions(whole[0])) >= 3
    ended = train(tmp_path)
    assert all(map(torch.equal, ended, whole[1]))
    assert told(tmp_path) == told(whole[0])
    files = sorted(file.name for file in (tmp_path / "ring").iterdir())
    assert not [name for name in files if name.endswith(".partial")]


def test_missing_files_cause_a_warning(tmp_path: Path) -> None:
    where = "before anything is put back"
    process = multiprocessing.get_context("fork").Process(target=child, args=(tmp_path, where))
    process.start()
    process.join(120)
    for file in (tmp_path / "ring").iterdir():
        file.unlink()
    with pytest.warns(UserWarning, match="a rollback to it is not possible"):
        train(tmp_path)
    later = [action for action in actions(tmp_path) if action.step > SAVES]
    assert later
    for action in later:  # it went back to what was kept since, or said that there was nothing
        back = action.detail.partition("the state of step ")[2].split(";")[0]
        assert int(back) > SAVES if action.applied else not back
