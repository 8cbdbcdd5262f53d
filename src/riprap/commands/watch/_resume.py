"""Resume an interrupted run: find its checkpoint, and check that the configuration is the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riprap.commands.watch._config import TrainedConfig
from riprap.errors import ConfigError, RecordError
from riprap.record import FILE_NAME, Reader, require_vacant

TRAINER_FOLDER = "trainer"  # inside the folder of the run
REQUIRED_FILES = ("riprap*.safetensors", "*model*.safetensors", "optimizer.pt", "scheduler.pt")
LENGTH_FREE_SCHEDULES = ("constant", "constant_with_warmup")  # independent of the run's length


@dataclass(frozen=True)
class Checkpoint:
    """Checkpoint of the trainer that contains the state of the monitor."""

    step: int  # last optimizer step before the checkpoint
    total: int  # optimizer steps of the run when it was saved
    folder: Path


def newest_checkpoint(run_dir: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint of a run; None if there is none."""
    folders = (run_dir / TRAINER_FOLDER).glob("checkpoint-*")
    complete = [c for c in map(_complete_checkpoint, folders) if c is not None]
    return max(complete, key=lambda checkpoint: checkpoint.step, default=None)


def _complete_checkpoint(folder: Path) -> Checkpoint | None:
    # The trainer writes its own state last. Weights in a pickle do not count.
    if not all(any(folder.glob(pattern)) for pattern in REQUIRED_FILES):
        return None
    with suppress(OSError, ValueError, KeyError, TypeError):
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        return Checkpoint(int(state["global_step"]), int(state["max_steps"]), folder)
    return None


def require_empty_run_dir(run_dir: Path, command: str) -> None:
    """Raise a RecordError unless a new run can be recorded in a folder; create nothing.

    Args:
        command: that which would resume it, such as "watch".
    """
    try:
        require_vacant(run_dir)
    except RecordError as error:
        checkpoint = newest_checkpoint(run_dir)
        if checkpoint is None:
            raise
        raise RecordError(
            f"{error}; `riprap {command} CONFIG --resume` continues from its checkpoint of step "
            f"{checkpoint.step}"
        ) from error


def find_checkpoint(config: TrainedConfig, rows: str, reward: str | None = None) -> Path:
    """Return the folder of the checkpoint from which the configured run continues.

    A ConfigError is raised unless there is a complete checkpoint with steps left, and the run has
    the same configuration, the same training rows (`rows` is their fingerprint) and the same file
    of its reward function (`reward` is its hash; None: there is none).
    """
    if not (config.run_dir / FILE_NAME).is_file():
        raise ConfigError(
            f"there is nothing to resume in {config.run_dir}: it has no {FILE_NAME}; start the run "
            "without --resume"
        )
    with Reader(config.run_dir) as reader:
        notes = reader.meta().get("notes", {})
    if "config" not in notes:
        raise ConfigError(
            f"the record in {config.run_dir} was not made from a configuration: use another run_dir"
        )
    recorded = type(config).parse(notes["config"], f"the record in {config.run_dir}")
    _require_same_config(recorded, config)
    if notes.get("rows", rows) != rows:
        raise ConfigError(
            f"the rows of {config.data.path!r} are not those with which the run in "
            f"{config.run_dir} started: restore the old rows, or use another run_dir"
        )
    if notes.get("reward", reward) != reward:
        raise ConfigError(
            f"the file of the reward is not that with which the run in {config.run_dir} started: "
            "restore the old file, or use another run_dir"
        )
    checkpoint = newest_checkpoint(config.run_dir)
    if checkpoint is None:
        raise ConfigError(
            f"the run in {config.run_dir} has no complete checkpoint to resume from: set "
            "training.save_steps, and start again with another run_dir"
        )
    total = config.training.max_steps or checkpoint.total
    if checkpoint.step >= total:
        raise ConfigError(
            f"no steps are left: the checkpoint {checkpoint.folder} is of step {checkpoint.step}, "
            f"and training ends at step {total}; `riprap report {config.run_dir}` writes the "
            "report of the run"
        )
    return checkpoint.folder


def _require_same_config(recorded: TrainedConfig, current: TrainedConfig) -> None:
    """Refuse a changed configuration; run_dir may differ, and max_steps may have grown."""
    before, after = recorded.training.max_steps, current.training.max_steps
    run = f"the run in {current.run_dir} started with"
    for key, old, new in _differences(
        recorded.model_dump(mode="json"), current.model_dump(mode="json")
    ):
        if key == "run_dir":
            continue
        if key != "training.max_steps" or before is None or after is None:
            raise ConfigError(
                f"{run} {key}: {_as_json(old)}, and the configuration now has {_as_json(new)}: "
                "restore the old value, or use another run_dir"
            )
        if after < before:
            raise ConfigError(
                f"{run} training.max_steps: {before}; a resumed run may be longer, not shorter, "
                f"and the configuration now has {after}"
            )
        if current.training.lr_scheduler_type not in LENGTH_FREE_SCHEDULES:
            raise ConfigError(
                f"{run} training.max_steps: {before}, on which the schedule "
                f"{current.training.lr_scheduler_type!r} depends: restore the old value, or use "
                "another run_dir"
            )


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted key and both values of each difference."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old | new:
            inner = f"{key}.{name}" if key else name
            yield from _differences(old.get(name), new.get(name), inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (old_item, new_item) in enumerate(zip(old, new, strict=True)):
            yield from _differences(old_item, new_item, f"{key}.{index}")
    elif old != new:
        yield key, old, new


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
