"""Transformers' Trainer and TRL's trainers: a callback that puts a selector on and takes it off."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from riprap.errors import ConfigError
from riprap.selection import LoopAttachment, RowLossFn, Selector


class SelectionCallback(TrainerCallback):
    """`Trainer(..., callbacks=[SelectionCallback(selector)])`.

    Rows are chosen over all micro-batches of a step, and the gradient is theirs before the trainer
    clips it. Beside a `MonitorCallback` and its guard the order does not matter.

    Args:
        losses: (output, inputs by name) -> each row's own loss, for a trainer whose loss is neither
            the model's own nor SFTTrainer's.
    """

    def __init__(self, selector: Selector, losses: RowLossFn | None = None) -> None:
        self.selector, self._losses = selector, losses
        self._attachment: LoopAttachment | None = None
        self._left: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the selector on."""
        model, optimizer = kwargs.get("model"), kwargs.get("optimizer")
        if model is None or optimizer is None:
            raise ConfigError(
                "the trainer began without a model or an optimizer of its own, so there is "
                "nothing to select for: give SelectionCallback to a transformers Trainer"
            )
        self.selector.step = state.global_step
        steps = args.gradient_accumulation_steps
        self._attachment = self.selector.begin(model, optimizer, steps, self._losses)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count micro-batches: the last step of an epoch may have fewer."""
        try:
            count = len(kwargs["train_dataloader"])
        except (KeyError, TypeError):  # a stream of unknown length
            self._left = None
            return
        steps = args.gradient_accumulation_steps
        # A training that is taken up within an epoch passes over what it has had of it.
        had = 0 if args.ignore_data_skip else state.global_step % max(1, -(-count // steps))
        self._left = count - had * steps

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say after how many micro-batches to choose."""
        if self._attachment is None:
            return
        steps = args.gradient_accumulation_steps
        if self._left is not None:
            steps = max(1, min(steps, self._left))
            self._left -= steps
        self._attachment.accumulate = steps

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the selector off."""
        self.selector.end()
