"""Callback for Lightning's Trainer."""

# ruff: noqa: E402
from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from riprap._extras import require

require("lightning", "lightning")

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor, nn

from riprap._warnings import warn
from riprap.errors import ConfigError
from riprap.guards import Guard
from riprap.integrations._ending import (
    Usage,
    check_monitor,
    describe,
    say_the_end,
    warn_without_steps,
)
from riprap.integrations._numbers import NewNumbers, as_number
from riprap.integrations._states import (
    miss_state,
    path_or_none,
    require_same_step,
    restore_monitor_state,
)
from riprap.integrations.trackers import send_alert
from riprap.monitor import Monitor

NORMS = ("grad_norm", "grad_2.0_norm_total")  # the second is of Lightning's own `grad_norm`
EVAL_LOSSES = ("eval_loss", "val_loss", "val/loss", "valid_loss")


class MonitorCallback(Callback):
    """`Trainer(..., callbacks=[MonitorCallback(monitor, submodule="model")])`.

    After each probe evaluation, score and margin of each behavior are sent to the trainer's
    loggers, under `riprap/`, and alerts to W&B. The monitor's state is part of Lightning's
    checkpoints; create the monitor with `resume=True` to continue from one.

    The record also has the loss and the learning rate, every `log_every_n_steps` steps; the
    gradient norm and the loss of a validation if the module logs them, as `grad_norm` and
    `val_loss` or `eval_loss`; and the checkpoints that the trainer saves, but not those of weights
    only, of which Lightning tells no callback.

    At the end, the summary of the run is printed in a terminal, or logged, and the report is
    written into `run_dir` if the extra `report` is installed.

    Args:
        guard: intervention that protects behaviors; see `Monitor.watch`. A `Rollback` gets the
            trainer's scheduler and gradient scaler.
        checkpoint: folder with the monitor's state, as `riprap.record.save_state` or another
            callback wrote it; None: the checkpoint from which Lightning resumes.
        submodule: name of the submodule that is passed to the margins, such as the language model
            inside the `LightningModule`; empty: the module itself.

    Raises:
        ConfigError: an argument is something else; at the start of training: the module has no
            optimizer, or no such submodule, or the checkpoint has no state for a record with
            readings.
    """

    def __init__(
        self,
        monitor: Monitor,
        guard: Guard | None = None,
        *,
        checkpoint: str | Path | None = None,
        submodule: str = "",
    ) -> None:
        check_monitor(monitor, guard, "MonitorCallback")
        if not isinstance(submodule, str):
            raise ConfigError(
                f"MonitorCallback got {describe(submodule)} as submodule: give the name of a "
                "submodule of your LightningModule, such as submodule='model'"
            )
        self.checkpoint = path_or_none(checkpoint, "MonitorCallback")
        self.monitor, self.guard, self.submodule = monitor, guard, submodule
        self._numbers, self._usage = NewNumbers(), Usage(self)
        self._has_state = False  # of the checkpoint from which the trainer resumes
        self._alerts_sent = 0
        self._began_at = (0, 0)  # the trainer's step and the monitor's, when training began
        self._seen = (0, 0)  # the same after the last micro-batch
        self._losses: list[Tensor] = []  # of micro-batches since they were recorded
        self._recorded_at = 0  # the trainer's step of the last recorded loss
        self._rate: float | None = None  # of the last step
        self._saved: list[Path] = []  # checkpoints that were being written since the last batch

    def __getstate__(self) -> dict[str, Any]:
        self._usage.began = True  # the copy begins in its place
        return self.__dict__.copy()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the probes and hook the optimizers."""
        self._usage.began = True
        model = self._model(pl_module)
        if not trainer.optimizers:
            raise ConfigError(
                "the module has no optimizer, so there is nothing to monitor: return one from "
                "configure_optimizers"
            )
        self.monitor.end()  # an interrupted training had no on_train_end
        self._restore(trainer)
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
        if self.guard is not None:
            self.guard.attach_trainer_state(schedules[0] if schedules else None, _scaler(trainer))
        self._alerts_sent = len(self.monitor.alerts)
        one, *others = trainer.optimizers
        total = trainer.estimated_stepping_batches
        # inf or -1: nobody knows how many batches there are.
        is_known = 0 < total < float("inf") and not others  # it counts each optimizer's steps
        steps = int(total) - trainer.global_step if is_known else None
        by_step = [
            config.scheduler
            for config in trainer.lr_scheduler_configs
            if config.interval == "step" and config.frequency == 1
        ]
        self.monitor.begin(
            model,
            [one, *others] if others else one,
            self.guard,
            steps=steps,
            scheduler=by_step[0] if steps is not None and len(by_step) == 1 else None,
        )
        self._began_at = self._seen = (trainer.global_step, self.monitor.step)
        self._recorded_at = trainer.global_step
        self._log(trainer)

    def _restore(self, trainer: Trainer) -> None:
        """Take up the state of the checkpoint from which the trainer resumes."""
        if trainer.global_step == 0 or self._has_state:
            return
        if self.monitor.step or len(trainer.optimizers) > 1:  # it counts each optimizer's steps
            if len(trainer.optimizers) == 1:
                require_same_step(self.monitor, trainer.global_step)
        elif self.checkpoint is not None:
            restore_monitor_state(self.monitor, self.checkpoint, "MonitorCallback")
        else:
            miss_state(self.monitor, f"the checkpoint {trainer.ckpt_path}", "MonitorCallback")

    def _model(self, module: LightningModule) -> nn.Module:
        try:
            return module.get_submodule(self.submodule)
        except AttributeError as error:
            known = ", ".join(name for name, _ in module.named_children())
            raise ConfigError(
                f"the module has no submodule {self.submodule!r}; it has {known}"
            ) from error

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Note the learning rate of the step: its scheduler steps before the batch ends."""
        self._rate = max(float(group["lr"]) for group in optimizer.param_groups)

    def on_train_batch_start(self, *_: object) -> None:
        """Record a checkpoint that was saved after the last batch."""
        self._note_saved()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: object
    ) -> None:
        """Log new scores and margins; stop if the monitor asks for it."""
        trainer.should_stop = trainer.should_stop or self.monitor.should_stop
        at = (trainer.global_step, self.monitor.step)
        if _scaler(trainer) is not None and at[0] > self._seen[0] and at[1] == self._seen[1]:
            self.monitor.record_skipped_step("the gradient scaler found an overflow")
        self._seen = at
        self._record_loss(trainer, outputs)
        self._log(trainer)

    def _record_loss(self, trainer: Trainer, outputs: Any) -> None:
        """Record the mean loss of a step since the last time, and the learning rate."""
        interval = getattr(trainer, "log_every_n_steps", 0)
        if not interval:
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._losses.append(loss.detach())
        step, taken = trainer.global_step, trainer.global_step - self._recorded_at
        if not taken or step % interval:
            return
        # Lightning has divided each loss by the number of micro-batches of a step.
        count = taken if trainer.lightning_module.automatic_optimization else len(self._losses)
        found = {"loss": float(sum(self._losses)) / count} if self._losses and count else {}
        found |= {} if self._rate is None else {"learning_rate": self._rate}
        found |= _logged(trainer, NORMS, "grad_norm")
        if found and self.monitor.watching:
            self.monitor.log_training(**found)
        self._losses, self._recorded_at = [], step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the loss of a validation, if the module logs it."""
        found = _logged(trainer, EVAL_LOSSES, "eval_loss")
        if found and self.monitor.watching:
            self.monitor.log_training(**found)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the probes after the last step, before other callbacks average weights."""
        steps, epochs = trainer.max_steps, trainer.max_epochs or -1
        if (
            trainer.should_stop
            or 0 < steps <= trainer.global_step
            or 0 < epochs <= trainer.current_epoch + 1
        ):
            self.monitor.evaluate_last_step()

    def _log(self, trainer: Trainer) -> None:
        if numbers := self._numbers.of(self.monitor):
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=trainer.global_step)
        for alert in self.monitor.alerts[self._alerts_sent :]:
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    try:
                        send_alert(alert, sys.modules["wandb"], logger.experiment)
                    except Exception as error:  # noqa: BLE001 a tracker's failure never ends a run
                        warn(f"wandb took no alert: {error}")
        self._alerts_sent = len(self.monitor.alerts)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the probes a last time, remove the hooks, and say the summary."""
        self._note_saved()
        watching = self.monitor.watching
        self.monitor.end()
        self._log(trainer)
        if watching:
            trainer_step, own_step = self._began_at
            warn_without_steps(self.monitor, own_step, trainer.global_step - trainer_step)
            say_the_end(self.monitor)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove the hooks; the readings stay in the record."""
        self._note_saved()
        self.monitor.end()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note where the trainer is about to write a checkpoint."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_name != "save_checkpoint":
            frame = frame.f_back
        found = None if frame is None else frame.f_locals.get("filepath")
        self._saved += [Path(found)] if isinstance(found, str | Path) else []

    def _note_saved(self) -> None:
        """Record the checkpoints that were being written, if they are there."""
        saved, self._saved = self._saved, []
        for path in saved:
            if path.exists() and self.monitor.watching:
                self.monitor.log_checkpoint(path, [own.name for own in path.parent.glob("*.ckpt")])

    def state_dict(self) -> dict[str, Any]:
        """Return the monitor's state, for the trainer's checkpoints."""
        return self.monitor.state_dict() if self.monitor.watching else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the monitor's state; create the monitor with `resume=True` for that."""
        if state_dict and not self.monitor.watching and self.checkpoint is None:
            self.monitor.load_state_dict(state_dict)
            self._has_state = True


def _logged(trainer: Trainer, names: Sequence[str], name: str) -> dict[str, float]:
    """Return the first of these metrics that the module logs, under the record's name for it."""
    numbers = (as_number(trainer.callback_metrics.get(own)) for own in names)
    found = next((number for number in numbers if number is not None), None)
    return {} if found is None else {name: found}


def _scaler(trainer: Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)
