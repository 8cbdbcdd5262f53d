"""Transformers' Trainer and TRL's trainers: a callback that opens and closes the watch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from riprap._distributed import rank, sharded
from riprap.errors import ConfigError, RecordError
from riprap.guards import Guard
from riprap.guards.weights import supply
from riprap.integrations._selection_callback import SelectionCallback
from riprap.monitor import Monitor
from riprap.record import load_state, save_state

__all__ = ["MonitorCallback", "SelectionCallback"]


class MonitorCallback(TrainerCallback):
    """`Trainer(..., callbacks=[MonitorCallback(monitor)])`.

    Steps are the optimizer's, so accumulation needs no care. The last score and margin of each
    behaviour join what the trainer logs, as `riprap/<behaviour>/score` and so on.

    The monitor's state lies in the trainer's checkpoints, and a training that is taken up by
    `trainer.train(resume_from_checkpoint=...)` is watched on as if it had never been interrupted;
    make the monitor with `resume=True` for that.

    Args:
        guard: changes steps so that behaviours are kept; see `Monitor.watch`. A `Rollback` is given
            the trainer's schedule and gradient scaler.
        checkpoint: the folder to take the monitor's state from; None: the checkpoint of the step
            at which the trainer resumes, in its output folder.
    """

    def __init__(
        self,
        monitor: Monitor,
        guard: Guard | None = None,
        *,
        checkpoint: str | Path | None = None,
    ) -> None:
        self.monitor, self.guard = monitor, guard
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self._saved_at = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Visit the probes and hook the optimizer."""
        model, optimizer = kwargs.get("model"), kwargs.get("optimizer")
        if model is None or optimizer is None:
            raise ConfigError(
                "the trainer began without a model or an optimizer of its own, so there is "
                "nothing to watch: give MonitorCallback to a transformers Trainer"
            )
        self.monitor.end()  # a training that was interrupted never said that it ended
        if state.global_step > 0 and self.monitor.step == 0:
            self._take_up(_checkpoint(args, state) if self.checkpoint is None else self.checkpoint)
        if self.guard is not None:
            scaler = getattr(optimizer, "scaler", None)
            supply(self.guard, schedule=kwargs.get("lr_scheduler"), scaler=scaler)
        self.monitor.begin(model, optimizer, self.guard)

    def _take_up(self, folder: Path) -> None:
        shared, own = folder / _file(False), folder / _file(True)
        if not shared.is_file() and not own.is_file():
            warnings.warn(
                f"riprap: no monitor's state in {folder}: what was lost before this step is not "
                "known, and the watch begins here; MonitorCallback(monitor, checkpoint=...) says "
                "where to look",
                stacklevel=2,
            )
            return
        self.monitor.load_state_dict(load_state(shared if shared.is_file() else own))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note a skipped step; stop where the guard asks for it; save the monitor's state.

        Before a checkpoint is saved, so that none is without the state should the process die in
        between.
        """
        if self.monitor.should_stop:
            control.should_training_stop = True
        if getattr(kwargs.get("optimizer"), "step_was_skipped", False):
            self.monitor.record_skipped_step("the gradient scaler found an overflow")
        if control.should_save:
            self._save(args, state, kwargs["model"])

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the monitor's state where something else asked for the checkpoint."""
        if self._saved_at != state.global_step:
            self._save(args, state, kwargs["model"])

    def _save(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        apart = sharded(model)  # each rank holds its own part of the protected gradients
        if rank() == 0 or apart:
            try:
                file = _checkpoint(args, state) / _file(apart)
                save_state(file, self.monitor.state_dict())
            except RecordError as error:  # the observer is ill, and training is not
                warnings.warn(f"riprap: {error}", stacklevel=2)
        self._saved_at = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Visit the probes a last time and take the hooks off."""
        self.monitor.end()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add each behaviour's latest numbers to the logs, and to the trainer's log history."""
        if logs is not None:
            logs.update(self.monitor.metrics())
            if state.log_history:  # the trainer filed a copy before it asked its callbacks
                state.log_history[-1].update(self.monitor.metrics())


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _file(apart: bool) -> str:
    return f"riprap-{rank()}.safetensors" if apart else "riprap.safetensors"
