"""Callbacks for transformers' Trainer and TRL's trainers: monitor and selector."""

# ruff: noqa: E402
from __future__ import annotations

from pathlib import Path
from typing import Any

from riprap._extras import require

require("hf", "transformers")

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from riprap._checks import is_number
from riprap.errors import ConfigError
from riprap.guards import Guard
from riprap.integrations._ending import Usage, check_monitor, say_the_end, warn_without_steps
from riprap.integrations._numbers import NewNumbers
from riprap.integrations._selection_callback import SelectionCallback
from riprap.integrations._states import (
    path_or_none,
    require_same_step,
    restore_monitor_state,
    save_monitor_state,
)
from riprap.integrations._trainer import TrackerLink, checkpoint_folder, resumed_checkpoint
from riprap.monitor import Monitor, say

__all__ = ["MonitorCallback", "SelectionCallback"]

# Of a trainer's logs, in the record.
LOGGED = ("loss", "eval_loss", "grad_norm", "learning_rate", "reward", "kl")


class MonitorCallback(TrainerCallback):
    """`Trainer(..., callbacks=[MonitorCallback(monitor)])`.

    Steps are optimizer steps, also with gradient accumulation. After each probe evaluation, score
    and margin of each behavior go to all trackers of the trainer (`report_to`, and callbacks of
    your own) and to the trainer's log history, as `riprap/<behavior>/score` and so on. What
    `train()` and `evaluate()` return is left as it is.

    The monitor's state is saved in the trainer's checkpoints. After
    `trainer.train(resume_from_checkpoint=...)` monitoring continues as if training had not been
    interrupted; create the monitor with `resume=True` for that.

    In a hyperparameter search each trial has a monitor of its own (`callback.monitor` is that of
    the latest), with its record in `run_dir/<trial>`.

    The record also has what the trainer logs of loss, gradient norm and learning rate, in
    reinforcement learning of reward and KL divergence, and the checkpoints that it saves.

    At the end, the summary of the run is printed in a terminal, or logged, and the report is
    written into `run_dir` if the extra `report` is installed.

    Args:
        guard: intervention that protects behaviors; see `Monitor.watch`. A `Rollback` gets the
            trainer's scheduler and gradient scaler.
        checkpoint: folder with the monitor's state; None: the checkpoint from which the trainer
            resumes.

    Raises:
        ConfigError: `monitor` or `guard` is something else; at the start of training: there is
            nothing to monitor, or the checkpoint's state does not belong to the monitor's record.
    """

    def __init__(
        self, monitor: Monitor, guard: Guard | None = None, *, checkpoint: str | Path | None = None
    ) -> None:
        check_monitor(monitor, guard, "MonitorCallback")
        self.checkpoint = path_or_none(checkpoint, "MonitorCallback")
        self._take(monitor, guard)
        self._usage = Usage(self)

    def _take(self, monitor: Any, guard: Guard | None) -> None:
        self.monitor, self.guard, self._given_monitor = monitor, guard, monitor
        self.trackers, self._numbers = TrackerLink(), NewNumbers()
        self._alerts_sent = 0
        self._began_at = (0, 0)  # the trainer's step and the monitor's, when training began

    def __getstate__(self) -> dict[str, Any]:
        self._usage.began = True  # the copy begins in its place
        return self.__dict__.copy()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate the probes and hook the optimizer."""
        model, optimizer = kwargs.get("model"), kwargs.get("optimizer")
        if model is None or optimizer is None:
            raise ConfigError(
                "training started without a model or an optimizer, so there is nothing to "
                "monitor: pass MonitorCallback to a transformers Trainer, and let a Trainer of "
                "your own create its optimizer before its callbacks' on_train_begin"
            )
        self._usage.began = True
        self.monitor.end()  # an interrupted training had no on_train_end
        if state.is_hyper_param_search:
            self.monitor = self._monitor_of_trial(args, state)
        if state.global_step > 0 and self.monitor.step == 0:
            folder = self.checkpoint or resumed_checkpoint(args, state)
            restore_monitor_state(self.monitor, folder, "MonitorCallback")
        else:
            require_same_step(self.monitor, state.global_step)
        if self.guard is not None:
            scaler = getattr(optimizer, "scaler", None)
            self.guard.attach_trainer_state(kwargs.get("lr_scheduler"), scaler)
        self._alerts_sent = len(self.monitor.alerts)
        left = state.max_steps - state.global_step
        steps = left if state.max_steps > 0 and left >= 0 else None
        self.monitor.begin(
            model,
            optimizer,
            self.guard,
            steps=steps,
            scheduler=None if steps is None else kwargs.get("lr_scheduler"),
        )
        self._began_at = (state.global_step, self.monitor.step)

    def _monitor_of_trial(self, args: TrainingArguments, state: TrainerState) -> Monitor:
        """Return a monitor for this trial of a search: each trial trains a model of its own."""
        given = self._given_monitor.record.path
        trial = checkpoint_folder(args, state).parent.name
        run_dir = None if given is None else given.parent / trial
        say(f"{trial} has a monitor and a record of its own: {run_dir or 'in memory'}")
        return self._given_monitor.renew(run_dir)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Send the numbers of the evaluation before the first step: all trackers are open now."""
        if state.global_step == self._began_at[0]:
            self._send(args, state, control, **kwargs)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Send new numbers, record a skipped step, stop if the monitor asks for it."""
        if 0 < state.max_steps <= state.global_step:  # before an evaluation swaps the weights
            self.monitor.evaluate_last_step()
        if self.monitor.should_stop:
            control.should_training_stop = True
        if getattr(kwargs.get("optimizer"), "step_was_skipped", False):
            self.monitor.record_skipped_step("the gradient scaler found an overflow")
        self._send(args, state, control, **kwargs)
        if control.should_log:
            read = [h.step for h in self.monitor.behavior_histories.values() if h.steps]
            shown = self.monitor.metrics() | {"riprap/read_at_step": max(read, default=0)}
            self.trackers.show(shown, args, state, control, **kwargs)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the loss and other numbers of the training; evaluate the probes after the end.

        Probes are evaluated after the last step, before the trainer loads other weights.
        """
        logs = kwargs.pop("logs", None) or {}  # not passed on: another callback may change them
        found = {name: logs[name] for name in LOGGED if is_number(logs.get(name))}
        if found and self.monitor.watching:
            self.monitor.log_training(**found)
        if state.log_history and "train_runtime" in state.log_history[-1]:
            self.monitor.evaluate_last_step()
            self._send(args, state, control, before_last=True, **kwargs)

    def _send(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if numbers := self._numbers.of(self.monitor):
            self.trackers.send(numbers, args, state, control, **kwargs)
        for alert in self.monitor.alerts[self._alerts_sent :]:
            self.trackers.send_alert(alert)
        self._alerts_sent = len(self.monitor.alerts)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the monitor's state in the checkpoint that the trainer has just written."""
        folder = checkpoint_folder(args, state)
        if save_monitor_state(self.monitor, folder, kwargs["model"]):
            kept = folder.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
            self.monitor.log_checkpoint(folder, [path.name for path in kept])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the hooks, say the summary, and write the report."""
        watching = self.monitor.watching
        self.monitor.end()
        if watching:
            trainer_step, own_step = self._began_at
            warn_without_steps(self.monitor, own_step, state.global_step - trainer_step)
            self._conclude()

    def _conclude(self) -> None:
        """Say the summary and write the report; commands do both themselves."""
        say_the_end(self.monitor)
