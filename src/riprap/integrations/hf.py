"""Transformers' Trainer and TRL's trainers: a callback that opens and closes the watch."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from riprap.evidence import ConfigError
from riprap.monitor import Monitor


class MonitorCallback(TrainerCallback):
    """`Trainer(..., callbacks=[MonitorCallback(monitor)])`.

    Steps are the optimizer's, so accumulation needs no care. The last score and margin of each
    behaviour join what the trainer logs, as `riprap/<behaviour>/score` and so on.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor

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
        self.monitor.begin(model, optimizer)

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
            logs.update(self.monitor.summary())
            if state.log_history:  # the trainer filed a copy before it asked its callbacks
                state.log_history[-1].update(self.monitor.summary())
