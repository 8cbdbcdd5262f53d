"""The most recent checkpoints, in memory or as one safetensors file each."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from riprap._distributed import all_ranks, warn_once
from riprap.errors import RecordError
from riprap.guards.weights._training_snapshot import Checkpoint
from riprap.record import load_state, save_state


class CheckpointRing:
    """The most recent `size` checkpoints.

    Args:
        size: maximum number of checkpoints.
        folder: folder of the checkpoint files; None: checkpoints stay in memory. The ring owns all
            files `rollback-*.safetensors` in the folder, and removes those that are not needed.
        device: device of the collective operations between ranks.
    """

    def __init__(self, size: int, folder: Path | None, device: torch.device) -> None:
        self.size, self.folder, self._device = size, folder, device
        self.steps: list[int] = []
        self._in_memory: dict[int, Checkpoint] = {}
        self._in_saved_state: set[int] = set()  # steps in the last `state_dict`: keep their files

    def add(self, step: int, checkpoint: Checkpoint) -> None:
        """Add a checkpoint and remove the oldest one; a file is written completely or not at all.

        Raises:
            RecordError: the file cannot be written on some rank, or the checkpoint contains
                anything but plain values and tensors, which only memory can hold.
        """
        if self.folder is None:
            self._in_memory[step] = checkpoint
        else:
            self._write(step, checkpoint)
        self.steps = [*(stored for stored in self.steps if stored != step), step][-self.size :]
        self._prune()

    def make_room(self) -> None:
        """Remove the oldest checkpoint from memory if the next one takes its place.

        Else one more than `size` would be held while it is captured. The only one is kept.
        """
        if self.folder is None and len(self.steps) == self.size > 1:
            self.steps = self.steps[1:]
            self._prune()

    def read(self, step: int) -> Checkpoint:
        """Return the checkpoint of a step; raise a RecordError if a rank cannot read its file."""
        if self.folder is None:
            return self._in_memory[step]
        checkpoint, error_text = None, "another rank could not read it"
        try:
            checkpoint = load_state(self._file(step))
        except RecordError as error:
            error_text = str(error)
        if not all_ranks(checkpoint is not None, self._device) or checkpoint is None:
            raise RecordError(f"the checkpoint of step {step} could not be read: {error_text}")
        return checkpoint

    def _write(self, step: int, checkpoint: Checkpoint) -> None:
        failure: Exception | None = None
        try:
            save_state(self._file(step), checkpoint)
        except RecordError as error:
            failure = error
        if not all_ranks(failure is None, self._device):
            raise failure or RecordError(f"another rank cannot write its file of step {step}")

    def _file(self, step: int) -> Path:
        assert self.folder is not None
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        own = f"-rank{dist.get_rank()}" if several else ""
        return self.folder / f"rollback-{step}{own}.safetensors"

    def _prune(self) -> None:
        in_memory = self._in_memory
        self._in_memory = {step: in_memory[step] for step in self.steps if step in in_memory}
        if self.folder is None:
            return
        needed = {self._file(step) for step in self._in_saved_state.union(self.steps)}
        pattern = self._file(0).name.replace("0", "*", 1)
        partial = set(self.folder.glob(f"{pattern}.partial"))  # left by a killed process
        for file in (set(self.folder.glob(pattern)) | partial) - needed:
            with suppress(OSError):  # an unneeded file only takes space
                file.unlink()

    def state_dict(self) -> dict[str, Any]:
        """Return the steps and the checkpoints in memory; files stay until the next call."""
        self._in_saved_state = set(self.steps)
        return {
            "steps": list(self.steps),
            "checkpoints": [self._in_memory.get(step) for step in self.steps],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned; warn about missing files."""
        self._in_memory = {
            step: checkpoint
            for step, checkpoint in zip(state["steps"], state["checkpoints"], strict=True)
            if checkpoint is not None
        }
        self.steps = list(self._present(state["steps"]))
        self._in_saved_state = set(self.steps)

    def _present(self, steps: Iterable[int]) -> Iterable[int]:
        for step in steps:
            present = step in self._in_memory if self.folder is None else self._file(step).is_file()
            if all_ranks(present, self._device):
                yield step
            else:
                warn_once(
                    f"guard rollback: the checkpoint of step {step} is not in "
                    f"{self.folder or 'the state'}; a rollback to it is not possible",
                )
