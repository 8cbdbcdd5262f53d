"""Callback for Lightning's Trainer."""

# ruff: noqa: E402
from __future__ import annotations

from typing import Any

from riprap._extras import require

require("lightning", "lightning")

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from riprap.errors import ConfigError
from riprap.guards import Guard
from riprap.integrations._ending import Usage, check_monitor, describe, say_the_end
from riprap.integrations._numbers import NewNumbers
from riprap.monitor import Monitor


class MonitorCallback(Callback):
    """`Trainer(..., callbacks=[MonitorCallback(monitor, submodule="model")])`.

    After each probe evaluation, score and margin of each behavior are sent to the trainer's
    loggers, under `riprap/`. At the end, the summary of the run is printed in a terminal, or
    logged, and the report is written into `run_dir` if the extra `report` is installed.

    Args:
        guard: intervention that protects behaviors; see `Monitor.watch`. A `Rollback` gets the
            trainer's scheduler and gradient scaler.
        submodule: name of the submodule that is passed to the margins, such as the language model
            inside the `LightningModule`; empty: the module itself.

    Raises:
        ConfigError: an argument is something else; at the start of training: the module has no
            optimizer, or no such submodule.
    """

    def __init__(
        self, monitor: Monitor, guard: Guard | None = None, *, submodule: str = ""
    ) -> None:
        check_monitor(monitor, guard, "MonitorCallback")
        if not isinstance(submodule, str):
            raise ConfigError(
                f"MonitorCallback got {describe(submodule)} as submodule: give the name of a "
                "submodule of your LightningModule, such as submodule='model'"
            )
        self.monitor, self.guard, self.submodule = monitor, guard, submodule
        self._numbers, self._usage = NewNumbers(), Usage(self)

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
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
        if self.guard is not None:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self.guard.attach_trainer_state(schedules[0] if schedules else None, scaler)
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
        self._log(trainer)

    def _model(self, module: LightningModule) -> nn.Module:
        try:
            return module.get_submodule(self.submodule)
        except AttributeError as error:
            known = ", ".join(name for name, _ in module.named_children())
            raise ConfigError(
                f"the module has no submodule {self.submodule!r}; it has {known}"
            ) from error

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Log new scores and margins; stop if the monitor asks for it."""
        trainer.should_stop = trainer.should_stop or self.monitor.should_stop
        self._log(trainer)

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

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the probes a last time, remove the hooks, and say the summary."""
        watching = self.monitor.watching
        self.monitor.end()
        self._log(trainer)
        if watching:
            say_the_end(self.monitor)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove the hooks; the readings stay in the record."""
        self.monitor.end()

    def state_dict(self) -> dict[str, Any]:
        """Return the monitor's state, for the trainer's checkpoints."""
        return self.monitor.state_dict() if self.monitor.watching else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the monitor's state; create the monitor with `resume=True` for that."""
        if state_dict and not self.monitor.watching:
            self.monitor.load_state_dict(state_dict)
