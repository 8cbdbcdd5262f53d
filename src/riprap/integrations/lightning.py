"""Callback for Lightning's Trainer."""

# ruff: noqa: E402
from __future__ import annotations

from typing import Any

from riprap._extras import require

require("lightning", "lightning")

from lightning.pytorch import Callback, LightningModule, Trainer

from riprap.errors import ConfigError
from riprap.guards import Guard
from riprap.monitor import Monitor


class MonitorCallback(Callback):
    """`Trainer(..., callbacks=[MonitorCallback(monitor, submodule="model")])`.

    The latest scores and margins are sent to the trainer's loggers, under `riprap/`.

    Args:
        guard: intervention that protects behaviors; see `Monitor.watch`. A `Rollback` gets the
            trainer's scheduler and gradient scaler.
        submodule: name of the submodule that is passed to the margins, such as the language model
            inside the `LightningModule`; empty: the module itself.

    Raises:
        ConfigError: at the start of training, if the module has no optimizer or several, or no
            such submodule.
    """

    def __init__(
        self, monitor: Monitor, guard: Guard | None = None, *, submodule: str = ""
    ) -> None:
        self.monitor, self.guard, self.submodule = monitor, guard, submodule

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the probes and hook the optimizer."""
        if len(trainer.optimizers) != 1:
            raise ConfigError(
                f"the module has {len(trainer.optimizers)} optimizers, and a monitor can follow "
                "only one: call monitor.begin(model, optimizer) yourself, with that optimizer"
            )
        try:
            model = pl_module.get_submodule(self.submodule)
        except AttributeError as error:
            known = ", ".join(name for name, _ in pl_module.named_children())
            raise ConfigError(
                f"the module has no submodule {self.submodule!r}; it has {known}"
            ) from error
        self.monitor.end()  # an interrupted training had no on_train_end
        if self.guard is not None:
            schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self.guard.attach_trainer_state(schedules[0] if schedules else None, scaler)
        self.monitor.begin(model, trainer.optimizers[0], self.guard)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Log the latest scores and margins; stop if the guard asks for it."""
        trainer.should_stop = trainer.should_stop or self.monitor.should_stop
        if trainer.loggers and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            for logger in trainer.loggers:
                logger.log_metrics(self.monitor.metrics(), step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the probes a last time and remove the hooks."""
        self.monitor.end()

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
