"""The monitor's state in the checkpoint of a trainer: where it is, and what its absence means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from riprap._distributed import has_sharded_parameters, rank
from riprap._warnings import warn
from riprap.errors import ConfigError, RecordError
from riprap.monitor import Monitor
from riprap.record import load_state, save_state


def save_monitor_state(monitor: Monitor, folder: Path, model: nn.Module) -> bool:
    """Save the monitor's state in the folder of a checkpoint; return whether it was to be saved.

    Call it on all ranks: ranks with shards make the state together, and each has a file.
    """
    per_rank = has_sharded_parameters(model)
    if not monitor.watching or not (rank() == 0 or per_rank):
        return False
    own = monitor.state_dict()
    if rank() == 0 and not folder.is_dir():
        warn(
            f"the trainer wrote no checkpoint {folder}, so the monitor's state of this step is "
            "not saved",
        )
        return False
    try:
        save_state(folder / _file_name(per_rank), own)
    except RecordError as error:  # a failing monitor must not stop training
        warn(str(error))
    return True


def restore_monitor_state(monitor: Monitor, folder: Path, callback: str) -> None:
    """Load the monitor's state from the folder of a checkpoint; see `miss_state` without one."""
    shared, per_rank = folder / _file_name(False), folder / _file_name(True)
    if shared.is_file() or per_rank.is_file():
        monitor.load_state_dict(load_state(shared if shared.is_file() else per_rank))
    else:
        miss_state(monitor, str(folder), callback)


def miss_state(monitor: Monitor, checkpoint: str, callback: str) -> None:
    """Warn that a checkpoint has no state of the monitor.

    Raises:
        ConfigError: the record has readings, which this run would hide.
    """
    text = f"there is no monitor state in {checkpoint}"
    advice = f"give a folder with the state as {callback}(monitor, checkpoint=...)"
    if monitor.record.read_meta().get("behaviors"):
        raise ConfigError(
            f"{text}, and without it this run would hide the readings of the record "
            f"{monitor.record.path}: resume from a checkpoint that has "
            f"riprap.safetensors, {advice}, or give another run_dir"
        )
    warn(
        f"{text}: losses before this step are unknown, and monitoring starts here; {advice}",
    )


def require_same_step(monitor: Monitor, step: int) -> None:
    """Check that a trainer continues where its monitor is.

    Raises:
        ConfigError: it continues somewhere else.
    """
    if step not in (0, monitor.step):
        raise ConfigError(
            f"the trainer continues after step {step}, and this monitor has already seen "
            f"{monitor.step} steps, so its readings are of other weights: create a new Monitor "
            "with the same arguments and resume=True, and a new trainer with it"
        )


def path_or_none(checkpoint: Any, callback: str) -> Path | None:
    """Check the argument `checkpoint` of a callback.

    Raises:
        ConfigError: it is no path.
    """
    if checkpoint is None or isinstance(checkpoint, str | Path):
        return None if checkpoint is None else Path(checkpoint)
    raise ConfigError(
        f"{callback} got a {type(checkpoint).__name__} as checkpoint: give the folder with the "
        "monitor's state, or None"
    )


def _file_name(per_rank: bool) -> str:
    return f"riprap-{rank()}.safetensors" if per_rank else "riprap.safetensors"
