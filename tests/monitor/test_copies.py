"""Copies of a monitor, a callback, a model and an optimizer: they work, and write nowhere else."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from loops import task, train
from riprap import AlertPolicy, Behavior, Monitor
from riprap.behaviors import MarginFunction
from riprap.errors import ConfigError, RecordError
from riprap.record import Reader
from riprap.signals import default

WAYS: dict[str, Any] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}


class FirstLogit(MarginFunction):
    """A margin that a pickle can name."""

    unit = "logits"

    def __call__(self, model: Any, probes: Any) -> Any:
        return 5 + model(probes)[:, 0]


@pytest.fixture
def made(learned: nn.Module) -> tuple[nn.Module, Any, Behavior]:
    behavior = Behavior("first", torch.randn(12, 8), FirstLogit())
    return learned, torch.optim.AdamW(learned.parameters(), lr=1e-2), behavior


def monitor_of(behavior: Behavior, run: Path | None = None, **options: Any) -> Monitor:
    return Monitor([behavior], AlertPolicy.default(), probe_every=2, run_dir=run, **options)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", ["memory", "file"])
def test_a_copy_of_an_unused_monitor_watches_by_itself(
    made: Any, tmp_path: Path, way: str, place: str
) -> None:
    model, optimizer, behavior = made
    monitor = monitor_of(behavior, tmp_path if place == "file" else None)
    twin = WAYS[way](monitor)
    with twin.watch(model, optimizer):
        train(model, optimizer, task(4))
    assert twin.step == 4
    assert len(twin.history()) > 10
    assert monitor.step == 0
    if place == "memory":
        assert len(monitor.history()) == 0
        with monitor.watch(model, optimizer):
            train(model, optimizer, task(2))
        return
    assert len(Reader(tmp_path).readings()) == len(twin.history())
    with pytest.raises(RecordError, match="already holds a record"):  # it would hide the copy's
        monitor.begin(model, optimizer)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("moment", ["during", "after"])
@pytest.mark.parametrize("place", ["memory", "file"])
def test_a_copy_of_a_used_monitor_keeps_what_was_read(
    made: Any, tmp_path: Path, way: str, moment: str, place: str
) -> None:
    model, optimizer, behavior = made
    monitor = monitor_of(behavior, tmp_path if place == "file" else None)
    monitor.begin(model, optimizer)
    train(model, optimizer, task(4))
    if moment == "after":
        monitor.end()
    twin = WAYS[way](monitor)
    assert twin.history().equals(monitor.history())
    assert twin.metrics() == monitor.metrics()
    assert not twin.watching
    train(model, optimizer, task(2))
    assert twin.step == 4
    assert monitor.step == (6 if moment == "during" else 4)
    monitor.end()


@pytest.mark.parametrize("way", WAYS)
def test_copies_of_what_is_watched_have_no_hooks_of_the_monitor(made: Any, way: str) -> None:
    model, optimizer, behavior = made
    monitor = monitor_of(behavior)
    with monitor.watch(model, optimizer):
        train(model, optimizer, task(2))
        twin, own = WAYS[way]((model, optimizer))
        torch.save(model, io.BytesIO())
        torch.save(optimizer, io.BytesIO())
        readings, metrics = len(monitor.history()), monitor.metrics()
        train(twin, own, task(3))
        assert len(monitor.history()) == readings
        assert monitor.metrics() == metrics
        assert monitor.step == 2
        train(model, optimizer, task(1))
        assert monitor.step == 3


def test_a_renewed_monitor_has_the_same_arguments_and_no_past(
    made: Any, memory: Behavior, tmp_path: Path
) -> None:
    model, optimizer, _ = made
    told: list[Any] = []
    options = {"on_alert": told.append, "gradient_storage": "bfloat16", "signals": default()}
    monitor = monitor_of(memory, tmp_path / "one", **options)
    with monitor.watch(model, optimizer):
        train(model, optimizer, task(2))
    told.clear()
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    own = torch.optim.AdamW(other.parameters(), lr=0.5)
    with pytest.raises(ConfigError, match="has watched another model"):
        monitor.begin(other, own)
    renewed = monitor.renew(tmp_path / "two")
    with renewed.watch(other, own):
        train(other, own, task(30))
    assert renewed.step == 30
    assert Reader(tmp_path / "two").meta()["id"] != Reader(tmp_path / "one").meta()["id"]
    assert renewed._arguments() == monitor._arguments()
    assert told == renewed.alerts[: len(told)]
    assert told  # the user's own function, not a copy of it
