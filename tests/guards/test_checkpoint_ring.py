"""CheckpointRing: files are complete or absent, and exist as long as they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from guards.cases import Run, lessons
from guards.test_rollback import same
from riprap import guards
from riprap.errors import RiprapError
from riprap.guards.weights._checkpoint_ring import CheckpointRing
from riprap.guards.weights._training_snapshot import TrainingSnapshot


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = Run(guards.Rollback(checkpoint_dir=tmp_path / "file", keep_learning=False))
    with pytest.raises(RiprapError, match="cannot write"):
        run.go(lessons(1))


@pytest.mark.parametrize("torn", [[3], [2, 3]], ids=["the newest", "all"])
def test_files_that_cannot_be_read_are_passed_over_and_said(
    torn: list[int], tmp_path: Path
) -> None:
    run = Run(guards.Rollback(every=1, checkpoint_dir=tmp_path, keep_learning=False), rate=0.1)
    weights = []
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        for ids, targets in lessons(3):
            run.step(ids, targets)
            weights.append(run.weights())
        for step in torn:
            (tmp_path / f"rollback-{step}.safetensors").write_bytes(b"torn")
        run.step(*lessons(4)[3])
        (action,) = run.monitor.actions
    assert "checkpoint of step 3 could not be read" in action.detail
    assert action.applied is (torn == [3])
    assert same(run.weights(), weights[1]) is action.applied
    assert action.applied or "no healthy checkpoint to restore" in action.detail


def test_files_that_a_state_names_stay_until_the_next_state(tmp_path: Path) -> None:
    """A process that dies is taken up from its last state, which must find its files."""

    def there() -> set[int]:
        return {int(file.stem.split("-")[1]) for file in tmp_path.iterdir()}

    ring = CheckpointRing(1, tmp_path, torch.device("cpu"))
    for step in (1, 2):
        ring.add(step, {"weights": torch.full((2,), float(step))})
    assert there() == {2}
    state = ring.state_dict()
    for step in (3, 4):
        ring.add(step, {"weights": torch.full((2,), float(step))})
    assert there() == {2, 4}
    again = CheckpointRing(1, tmp_path, torch.device("cpu"))
    again.load_state_dict(state)
    assert again.read(2)["weights"].tolist() == [2.0, 2.0]
    ring.state_dict()
    ring.add(5, {})
    assert there() == {4, 5}


@pytest.mark.parametrize(("size", "most"), [(1, 2), (2, 2), (3, 3)])
def test_a_new_checkpoint_takes_the_place_of_the_oldest(
    size: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are large; the only one stays until its successor is complete."""
    guard = guards.Rollback(every=1, max_checkpoints=size, keep_learning=False)
    held: list[int] = []
    capture = TrainingSnapshot.capture

    def counted(training: TrainingSnapshot) -> dict[str, Any]:
        made = capture(training)
        held.append(1 + len(guard._ring.state_dict()["checkpoints"]))
        return made

    monkeypatch.setattr(TrainingSnapshot, "capture", counted)
    run = Run(guard, rate=1e-4)
    with run.monitor.watch(run.model, run.optimizer, guard=guard):
        for ids, targets in lessons(6):
            run.step(ids, targets)
        assert len(guard._ring.steps) == size
    assert len(held) > size
    assert max(held) == most
