"""A ring of checkpoints, the newest few: in memory, or as one safetensors file each."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from riprap._distributed import all_ranks
from riprap.errors import RecordError
from riprap.guards.weights._training_snapshot import Checkpoint
from riprap.record import load_state, save_state


class CheckpointRing:
    """The newest `keep` checkpoints.

    Args:
        keep: how many.
        folder: where their files are; None: they are kept in memory. Files that are called
            `rollback-*.safetensors` in there are its own, and are removed when nothing needs them.
        device: where ranks can agree.
    """

    def __init__(self, size: int, folder: Path | None, device: torch.device) -> None:
        self.size, self.folder, self._device = size, folder, device
        self.steps: list[int] = []
        self._in_memory: dict[int, Checkpoint] = {}  # in memory
        self._in_saved_state: set[int] = set()  # a state that was given out, and may be saved, names them

    def add(self, step: int, checkpoint: Checkpoint) -> None:
        """Keep one more, and let go of the oldest; a file is there as a whole or not at all.

        Raises:
            RecordError: the file cannot be written, here or on another rank, or it holds what is
                neither a plain value nor a tensor: keep it in memory then.
        """
        if self.folder is None:
            self._in_memory[step] = checkpoint
        else:
            self._write(step, checkpoint)
        self.steps = [*(one for one in self.steps if one != step), step][-self.size :]
        self._prune()

    def read(self, step: int) -> Checkpoint:
        """One that is in `steps`.

        Raises:
            RecordError: its file cannot be read, here or on another rank.
        """
        if self.folder is None:
            return self._in_memory[step]
        found, why = None, "another rank could not"
        try:
            found = load_state(self._file(step))
        except RecordError as error:
            why = str(error)
        if not all_ranks(found is not None, self._device) or found is None:
            raise RecordError(f"the checkpoint of step {step} could not be read: {why}")
        return found

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
        return self.folder / f"{self._prefix}{step}{self._suffix}"

    _prefix = "rollback-"

    @property
    def _suffix(self) -> str:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        return f"-rank{dist.get_rank()}.safetensors" if several else ".safetensors"

    def _prune(self) -> None:
        self._in_memory = {step: self._in_memory[step] for step in self.steps if step in self._in_memory}
        if self.folder is None:
            return
        needed = {self._file(step) for step in self._in_saved_state.union(self.steps)}
        own = self._file(0).name.replace("0", "*", 1)
        partial = set(self.folder.glob(f"{own}.partial"))  # of a process that was killed
        for file in (set(self.folder.glob(own)) | partial) - needed:
            with suppress(OSError):  # it only takes room
                file.unlink()

    def state_dict(self) -> dict[str, Any]:
        """The steps; in memory also the checkpoints. Files named here stay until the next call."""
        self._in_saved_state = set(self.steps)
        return {"steps": list(self.steps), "kept": [self._in_memory.get(step) for step in self.steps]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; of a file that is gone, say so."""
        self._in_memory = {
            step: kept
            for step, kept in zip(state["steps"], state["kept"], strict=True)
            if kept is not None
        }
        self.steps = list(self._present(state["steps"]))
        self._in_saved_state = set(self.steps)

    def _present(self, steps: Iterable[int]) -> Iterable[int]:
        for step in steps:
            here = step in self._in_memory if self.folder is None else self._file(step).is_file()
            if all_ranks(here, self._device):
                yield step
            else:
                warnings.warn(
                    f"riprap: guard rollback: the checkpoint of step {step} is not in "
                    f"{self.folder or 'the state'}, so there is no going back to it",
                    stacklevel=2,
                )
