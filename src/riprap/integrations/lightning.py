"""Lightning: a callback that opens and closes the watch."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from riprap.errors import ConfigError
from riprap.guards import Guard
from riprap.guards.weights import supply
from riprap.monitor import Monitor


class MonitorCallback(Callback):
    """`Trainer(..., callbacks=[MonitorCallback(monitor, part="model")])`.

    The latest numbers go to the trainer's loggers under `riprap/`.

    Args:
        guard: changes steps so that behaviours are kept; see `Monitor.watch`. A `Rollback` is given
            the trainer's schedule and gradient scaler.
        part: name of the submodule that margins are given, such as the language model that the
            `LightningModule` trains; empty: the module itself.

    Raises:
        ConfigError: at the start of training, where the module has no optimizer or several, or no
            such part.
    """

    def __init__(self, monitor: Monitor, guard: Guard | None = None, *, part: str = "") -> None:
        self.monitor, self.guard = monitor, guard
        self.part = part

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Visit the probes and hook the optimizer."""
        if len(trainer.optimizers) != 1:
            raise ConfigError(
                f"the module has {len(trainer.optimizers)} optimizers, and a monitor watches the "
                "steps of one: call monitor.begin(model, optimizer) for the one that is meant"
            )
        try:
            model = pl_module.get_submodule(self.part)
        except AttributeError as error:
            known = ", ".join(name for name, _ in pl_module.named_children())
            raise ConfigError(f"the module has no part {self.part!r}; it has {known}") from error
        self.monitor.end()  # a training that was interrupted never said that it ended
        if self.guard is not None:
            schedules = [one.scheduler for one in trainer.lr_scheduler_configs]
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            supply(self.guard, schedule=schedules[0] if schedules else None, scaler=scaler)
        self.monitor.begin(model, trainer.optimizers[0], self.guard)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Hand the latest numbers to the loggers; stop where the guard asks for it."""
        trainer.should_stop = trainer.should_stop or bool(self.monitor.should_stop)
        if trainer.loggers and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            for logger in trainer.loggers:
                logger.log_metrics(self.monitor.metrics(), step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Visit the probes a last time and take the hooks off."""
        self.monitor.end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take the hooks off; what was read is kept."""
        self.monitor.end()

    def state_dict(self) -> dict[str, Any]:
        """The monitor's state, for the trainer's checkpoints."""
        return self.monitor.state_dict() if self.monitor.watching else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the run up again; make the monitor with `resume=True` for that."""
        if state_dict and not self.monitor.watching:
            self.monitor.load_state_dict(state_dict)
