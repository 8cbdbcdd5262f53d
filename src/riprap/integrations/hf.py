"""Callbacks for transformers' Trainer and TRL's trainers: monitor and selector."""

# ruff: noqa: E402
from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from riprap._extras import require

require("hf", "transformers")

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from riprap._distributed import has_sharded_parameters, rank
from riprap.errors import ConfigError, RecordError
from riprap.guards import Guard
from riprap.integrations._selection_callback import SelectionCallback
from riprap.monitor import Monitor
from riprap.record import load_state, save_state

__all__ = ["MonitorCallback", "SelectionCallback"]


class MonitorCallback(TrainerCallback):
    """`Trainer(..., callbacks=[MonitorCallback(monitor)])`.

    Steps are optimizer steps, also with gradient accumulation. The latest score and margin of each
    behavior are added to the trainer's logs, as `riprap/<behavior>/score` and so on.

    The monitor's state is saved in the trainer's checkpoints. After
    `trainer.train(resume_from_checkpoint=...)` monitoring continues as if training had not been
    interrupted; create the monitor with `resume=True` for that.

    Args:
        guard: intervention that protects behaviors; see `Monitor.watch`. A `Rollback` gets the
            trainer's scheduler and gradient scaler.
        checkpoint: folder with the monitor's state; None: the checkpoint of the step at which the
            trainer resumes, in its output folder.
    """

    def __init__(
        self, monitor: Monitor, guard: Guard | None = None, *, checkpoint: str | Path | None = None
    ) -> None:
        self.monitor, self.guard = monitor, guard
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self._saved_at = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate the probes and hook the optimizer."""
        model, optimizer = kwargs.get("model"), kwargs.get("optimizer")
        if model is None or optimizer is None:
            raise ConfigError(
                "training started without a model or an optimizer, so there is nothing to "
                "monitor: pass MonitorCallback to a transformers Trainer"
            )
        self.monitor.end()  # an interrupted training had no on_train_end
        if state.global_step > 0 and self.monitor.step == 0:
            self._restore_state(self.checkpoint or _checkpoint_folder(args, state))
        if self.guard is not None:
            scaler = getattr(optimizer, "scaler", None)
            self.guard.attach_trainer_state(kwargs.get("lr_scheduler"), scaler)
        self.monitor.begin(model, optimizer, self.guard)

    def _restore_state(self, folder: Path) -> None:
        shared, per_rank = folder / _state_file(False), folder / _state_file(True)
        if not shared.is_file() and not per_rank.is_file():
            warnings.warn(
                f"riprap: there is no monitor state in {folder}: losses before this step are "
                "unknown, and monitoring starts here; give the folder with the state as "
                "MonitorCallback(monitor, checkpoint=...)",
                stacklevel=2,
            )
            return
        self.monitor.load_state_dict(load_state(shared if shared.is_file() else per_rank))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record a skipped step, stop if the guard asks for it, save the monitor's state.

        The state is saved before the trainer's checkpoint: if the process dies in between, no
        checkpoint lacks the state.
        """
        if self.monitor.should_stop:
            control.should_training_stop = True
        if getattr(kwargs.get("optimizer"), "step_was_skipped", False):
            self.monitor.record_skipped_step("the gradient scaler found an overflow")
        if control.should_save:
            self._save_state(args, state, kwargs["model"])

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the monitor's state if another callback requested the checkpoint."""
        if self._saved_at != state.global_step:
            self._save_state(args, state, kwargs["model"])

    def _save_state(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        per_rank = has_sharded_parameters(model)  # each rank has a shard of the gradients
        if rank() == 0 or per_rank:
            try:
                file = _checkpoint_folder(args, state) / _state_file(per_rank)
                save_state(file, self.monitor.state_dict())
            except RecordError as error:  # a failing monitor must not stop training
                warnings.warn(f"riprap: {error}", stacklevel=2)
        self._saved_at = state.global_step

    def on_train_end(self, *_: Any, **kwargs: Any) -> None:
        """Evaluate the probes a last time and remove the hooks."""
        self.monitor.end()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the latest scores and margins to the logs and to the trainer's log history."""
        if (logs := kwargs.get("logs")) is not None:
            logs.update(self.monitor.metrics())
            if state.log_history:  # the trainer copies the logs before it calls its callbacks
                state.log_history[-1].update(self.monitor.metrics())


def _checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _state_file(per_rank: bool) -> str:
    return f"riprap-{rank()}.safetensors" if per_rank else "riprap.safetensors"
