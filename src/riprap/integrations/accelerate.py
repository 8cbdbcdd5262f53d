"""Tracker for loops with Accelerate: the monitor is one of the accelerator's trackers."""

# ruff: noqa: E402
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from riprap._extras import require

require("hf", "accelerate")

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from torch import nn

from riprap._checks import shown
from riprap._warnings import warn
from riprap.errors import ConfigError
from riprap.guards import Guard
from riprap.integrations._ending import check_monitor, describe, say_the_end
from riprap.integrations._numbers import as_number
from riprap.integrations._states import (
    path_or_none,
    restore_monitor_state,
    save_monitor_state,
)
from riprap.integrations.trackers import send_alert
from riprap.monitor import Monitor, Tracker
from riprap.record import CHECKPOINT
from riprap.types import Alert

# Names under which a loop may log what the record has of its training.
NAMES = {"loss": "loss", "train_loss": "loss", "train/loss": "loss", "eval_loss": "eval_loss"}
NAMES |= {"learning_rate": "learning_rate", "lr": "learning_rate", "grad_norm": "grad_norm"}
WITH_ALERTS = ("trackio", "wandb")


class MonitorTracker(GeneralTracker):
    """`Accelerator(log_with=[MonitorTracker(monitor), "tensorboard"])`, then `tracker.watch(...)`.

    After each probe evaluation, score and margin of each behavior go to all trackers of the
    accelerator, and alerts to W&B and trackio. What the loop logs with `accelerator.log` as `loss`
    (or `train_loss`), `learning_rate` (or `lr`), `grad_norm` and `eval_loss` is in the record.

    `accelerator.save_state` saves the monitor's state in its folder; once the checkpoint is there,
    the record names it. To resume, create the monitor with `resume=True`, and give `checkpoint=`
    the folder that `accelerator.load_state` reads. A loop stops by itself where
    `monitor.should_stop` is True.

    When the watch ends, the summary of the run is printed in a terminal, or logged, and the report
    is written into `run_dir` if the extra `report` is installed.

    Args:
        guard: intervention that protects behaviors; see `Monitor.watch`. A `Rollback` gets the
            scheduler of the watch, and the accelerator's gradient scaler.
        checkpoint: folder with the monitor's state; None: training starts anew.

    Raises:
        ConfigError: an argument is something else.
    """

    name = "riprap"
    requires_logging_directory = False

    def __init__(
        self, monitor: Monitor, guard: Guard | None = None, *, checkpoint: str | Path | None = None
    ) -> None:
        check_monitor(monitor, guard, "MonitorTracker")
        super().__init__()
        self.monitor, self.guard = monitor, guard
        self.checkpoint = path_or_none(checkpoint, "MonitorTracker")
        self._forward: _Forward | None = None
        self._saved: list[_Saved] = []
        self._has_warned = False

    @property
    def tracker(self) -> Monitor:
        """The monitor, as `accelerator.get_tracker("riprap", unwrap=True)` returns it."""
        return self.monitor

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Record the numbers of the training that the loop logs."""
        known = {name: as_number(value) for name, value in values.items() if name in NAMES}
        found = {NAMES[name]: value for name, value in known.items() if value is not None}
        wrong = next((name for name, value in known.items() if value is None), None)
        if wrong is not None and not self._has_warned:
            self._has_warned = True
            text = f"accelerator.log got {wrong}={shown(values[wrong])}, which is no number"
            warn(f"{text}: such values are not in the record")
        if found and self.monitor.watching:
            self.monitor.log_training(**found)

    @contextmanager
    def watch(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Any,
        *,
        steps: int | None = None,
        scheduler: Any = None,
    ) -> Iterator[Monitor]:
        """Watch the steps that the prepared optimizer takes inside the context.

        Args:
            steps, scheduler: see `Monitor.watch`.

        Raises:
            ConfigError: this tracker is none of the accelerator's, the checkpoint has no state for
                a record with readings, or what `Monitor.watch` refuses.
        """
        if not isinstance(accelerator, Accelerator):
            raise ConfigError(
                f"MonitorTracker.watch got {describe(accelerator)} as accelerator: give the "
                "accelerate.Accelerator of your loop"
            )
        if not any(tracker is self for tracker in accelerator.trackers):
            raise ConfigError(
                "this MonitorTracker is none of the accelerator's trackers, so no loss would be in "
                "the record: give Accelerator(log_with=[tracker]), and call "
                "accelerator.init_trackers(...) before the watch"
            )
        if self.checkpoint is not None and self.monitor.step == 0:
            restore_monitor_state(self.monitor, self.checkpoint, "MonitorTracker")
        if self.guard is not None:
            self.guard.attach_trainer_state(scheduler, accelerator.scaler)
        if self._forward is None:
            self._forward = _Forward(accelerator, self._note_saved)
            self.monitor.add_tracker(self._forward)
        self._forward.accelerator = accelerator
        planned = scheduler if steps is not None else None
        self.monitor.begin(model, optimizer, self.guard, steps=steps, scheduler=planned)
        hook = accelerator.register_save_state_pre_hook(self._save)
        try:
            yield self.monitor
        finally:
            hook.remove()
            self._note_saved()
            self.monitor.end()
        say_the_end(self.monitor)

    def _save(self, models: list[nn.Module], weights: Any, output_dir: str) -> None:
        """Save the monitor's state beside what the accelerator is about to save."""
        folder = Path(output_dir)
        if models and save_monitor_state(self.monitor, folder, models[0]):
            self._saved.append(_Saved(self.monitor.step, folder, _files(folder)))

    def _note_saved(self) -> None:
        """Record the checkpoints of which the accelerator has written its part."""
        saved, self._saved = self._saved, []
        for step, folder, before in saved:
            if _files(folder) != before:
                kept = sorted(own.name for own in folder.parent.iterdir() if own.is_dir())
                facts = {"path": str(folder), "kept": kept}
                self.monitor.record.add_event(step, CHECKPOINT, **facts)


class _Saved(NamedTuple):
    """A checkpoint that the accelerator began to write, and its files at that time."""

    step: int
    folder: Path
    before: dict[str, int]


def _files(folder: Path) -> dict[str, int]:
    """Return the files of a folder and when they were written; empty: there is no folder."""
    if not folder.is_dir():
        return {}
    return {own.name: own.stat().st_mtime_ns for own in folder.iterdir()}


class _Forward(Tracker):
    """Passes numbers and alerts of the monitor on to the accelerator's other trackers.

    Args:
        on_step: called after each step.
    """

    def __init__(self, accelerator: Accelerator, on_step: Callable[[], None]) -> None:
        self.accelerator, self._on_step = accelerator, on_step

    def step(self, step: int) -> None:
        self._on_step()

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.accelerator.log(dict(numbers), step=step)

    def alert(self, alert: Alert) -> None:
        for tracker in self.accelerator.trackers:
            package = sys.modules.get(tracker.name) if tracker.name in WITH_ALERTS else None
            if package is not None:
                send_alert(alert, package, package)
