"""Going on with a run that was cut off, from its newest whole checkpoint: if it is the same run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riprap.commands.watch._config import WatchConfig
from riprap.errors import ConfigError, RecordError
from riprap.record import FILE_NAME, Reader, vacant

TRAINER = "trainer"  # the trainer's folder in that of the run
WHOLE = ("riprap*.safetensors", "*model*.safetensors", "optimizer.pt", "scheduler.pt")
SCHEDULES = ("constant", "constant_with_warmup")  # they do not depend on how long the run is


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of the trainer with the monitor's state in it.

    Attributes:
        step: the last optimizer step it knows of.
    """

    step: int
    folder: Path


def newest(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that was written to its end; None where there is none."""
    whole = [found for f in (run / TRAINER).glob("checkpoint-*") if (found := _whole(f))]
    return max(whole, key=lambda checkpoint: checkpoint.step, default=None)


def _whole(folder: Path) -> Checkpoint | None:
    # The trainer writes its own state last. A pickle in place of safetensors is passed over.
    if not all(any(folder.glob(pattern)) for pattern in WHOLE):
        return None
    with suppress(OSError, ValueError, KeyError, TypeError):
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        return Checkpoint(int(state["global_step"]), folder)
    return None


def refuse_taken(run: Path) -> None:
    """Whether a new run can be recorded in a folder; makes nothing.

    Raises:
        RecordError: there is a record already, or none can be written there.
    """
    try:
        vacant(run)
    except RecordError as error:
        found = newest(run)
        if found is None:
            raise
        raise RecordError(
            f"{error}; `riprap watch CONFIG --resume` goes on from its checkpoint of step "
            f"{found.step}"
        ) from error


def take_up(config: WatchConfig, rows: str) -> Path:
    """The checkpoint from which the run of this configuration goes on.

    Args:
        rows: fingerprint of the rows to train on.

    Raises:
        ConfigError: there is no run or no whole checkpoint to go on with, the run was made by
            another configuration or on other rows, or no steps are left.
        RecordError: the record cannot be read.
    """
    if not (config.run / FILE_NAME).is_file():
        raise ConfigError(
            f"there is nothing to resume in {config.run}: no {FILE_NAME} is there; start the run "
            "without --resume"
        )
    with Reader(config.run) as reader:
        notes = reader.meta().get("notes", {})
    if "config" not in notes:
        raise ConfigError(
            f"the record in {config.run} is not one that `riprap watch` began: name another run"
        )
    _same(WatchConfig.parse(notes["config"], f"the record in {config.run}"), config)
    if notes.get("rows", rows) != rows:
        raise ConfigError(
            f"the rows of {config.data.path!r} are not those that the run in {config.run} began "
            "with: bring the old ones back, or name another run"
        )
    found = newest(config.run)
    if found is None:
        raise ConfigError(
            f"the run in {config.run} left no whole checkpoint to resume from: set "
            "training.save_every, and start it anew under another run"
        )
    if found.step >= config.training.steps:
        raise ConfigError(
            f"nothing is left to train: the checkpoint {found.folder} is of step {found.step}, and "
            f"training.steps is {config.training.steps}; `riprap report {config.run}` writes the "
            "report of what there is"
        )
    return found.folder


def _same(then: WatchConfig, now: WatchConfig) -> None:
    """Whether two configurations are of one run; its folder may have moved, its end may too."""
    before, after = then.training.steps, now.training.steps
    for key, old, new in _differences(then.model_dump(mode="json"), now.model_dump(mode="json")):
        if key == "run":
            continue
        if key != "training.steps":
            raise ConfigError(
                f"the run in {now.run} was begun with {key}: {_text(old)}, and the configuration "
                f"now has {_text(new)}: change it back, or name another run"
            )
        if after < before:
            raise ConfigError(
                f"the run in {now.run} was begun with training.steps: {before}; a resumed run may "
                f"be longer, not shorter, and the configuration now has {after}"
            )
        if now.training.schedule not in SCHEDULES:
            raise ConfigError(
                f"the run in {now.run} was begun with training.steps: {before}, which the schedule "
                f"{now.training.schedule!r} counts on: change it back, or name another run"
            )


def _differences(then: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys of what differs, with both values."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in then | now:
            inner = f"{key}.{name}" if key else name
            yield from _differences(then.get(name), now.get(name), inner)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for index, (old, new) in enumerate(zip(then, now, strict=True)):
            yield from _differences(old, new, f"{key}.{index}")
    elif then != now:
        yield key, then, now


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
