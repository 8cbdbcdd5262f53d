"""A record of a run without steps is replaced; one with steps is not; `{time}` is expanded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from loops import task, train
from riprap import Behavior, Monitor
from riprap.errors import RecordError
from riprap.record import Reader, Writer


def begun(learned: nn.Module, memory: Behavior, folder: Path, steps: int) -> Monitor:
    monitor = Monitor([memory], run_dir=folder)
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    with monitor.watch(learned, optimizer):
        train(learned, optimizer, task(steps))
    monitor.record.close()
    return monitor


def test_a_run_that_ended_before_its_first_step_is_replaced(
    learned: nn.Module, memory: Behavior, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="no step"):
        begun(learned, memory, tmp_path / "run", 0)
    with Reader(tmp_path / "run") as reader:
        first = reader.meta()["id"]
        assert reader.readings()
    begun(learned, memory, tmp_path / "run", 3)
    with Reader(tmp_path / "run") as reader:
        assert reader.meta()["id"] != first
        assert max(reading.step for reading in reader.readings()) == 3
        starts = [r for r in reader.readings() if r.signal == "margin" and r.step == 0]
        assert len(starts) == 1


def test_a_run_with_a_step_is_never_replaced(
    learned: nn.Module, memory: Behavior, tmp_path: Path
) -> None:
    begun(learned, memory, tmp_path / "run", 1)
    text = r"never overwritten: give another run_dir, or continue.*'runs/first-\{time\}'"
    with pytest.raises(RecordError, match=text):
        Monitor([memory], run_dir=tmp_path / "run")


def test_a_record_that_another_monitor_holds_is_not_replaced(
    learned: nn.Module, memory: Behavior, tmp_path: Path
) -> None:
    holder = Monitor([memory], run_dir=tmp_path / "run")
    holder.begin(learned, torch.optim.SGD(learned.parameters(), lr=1e-2))
    with pytest.raises(RecordError, match=r"an earlier monitor of this process.*call end"):
        Monitor([memory], run_dir=tmp_path / "run")
    assert (tmp_path / "run" / "record.sqlite").is_file()
    with pytest.warns(UserWarning, match="no step"):
        holder.end()


def test_time_in_the_name_of_a_folder(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "first-{time}")
    writer.close()
    (folder,) = tmp_path.iterdir()
    assert re.fullmatch(r"first-\d{8}-\d{6}", folder.name)


def test_a_new_folder_holds_no_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"first-\{time\}' is a new folder each time.*give the"):
        Writer(tmp_path / "first-{time}", resume=True)
    assert list(tmp_path.iterdir()) == []
