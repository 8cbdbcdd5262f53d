"""Callback that attaches a selector to transformers' Trainer and to TRL's trainers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from riprap.errors import ConfigError
from riprap.integrations._ending import Usage, describe
from riprap.selection import LoopAttachment, RowLossFn, Selector


class SelectionCallback(TrainerCallback):
    """Row selection under a trainer: `Trainer(..., callbacks=[SelectionCallback(selector)])`.

    Rows are selected over all micro-batches of a step. Their gradient is in `.grad` before the
    trainer clips it. The order of this callback and a `MonitorCallback` does not matter.

    Args:
        losses: (output, inputs by name) -> each row's own loss, for a trainer whose loss is neither
            the model's own nor SFTTrainer's.

    Raises:
        ConfigError: `selector` or `losses` is something else; at the start of training: rows of
            this model or trainer cannot be selected.
    """

    def __init__(self, selector: Selector, losses: RowLossFn | None = None) -> None:
        if not isinstance(selector, Selector):
            raise ConfigError(
                f"SelectionCallback needs a Selector, and got {describe(selector)}: give "
                "SelectionCallback(Selector(strategy='moderate'))"
            )
        if losses is not None and not callable(losses):
            raise ConfigError(
                f"SelectionCallback got {describe(losses)} as losses: give a function of (output, "
                "inputs by name) that returns each row's own loss"
            )
        self.selector, self._losses = selector, losses
        self._attachment: LoopAttachment | None = None
        self._batches_left: int | None = None
        self._usage = Usage(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which is attached to nothing and begins in its place."""
        self._usage.began = True
        return self.__dict__ | {"_attachment": None}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach the selector."""
        self._usage.began = True
        model, optimizer = kwargs.get("model"), kwargs.get("optimizer")
        if model is None or optimizer is None:
            raise ConfigError(
                "the trainer began without a model or an optimizer, so rows cannot be selected: "
                "give SelectionCallback to a transformers Trainer"
            )
        self.selector.step = state.global_step
        steps = args.gradient_accumulation_steps
        self._attachment = self.selector.begin(model, optimizer, steps, self._losses)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the micro-batches of the epoch, because its last step may have fewer."""
        try:
            count = len(kwargs["train_dataloader"])
        except (KeyError, TypeError):  # a stream of unknown length
            self._batches_left = None
            return
        steps = args.gradient_accumulation_steps
        # A resumed training skips the micro-batches of the epoch that it has trained on.
        done = 0 if args.ignore_data_skip else state.global_step % max(1, -(-count // steps))
        self._batches_left = count - done * steps

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the number of micro-batches of this step."""
        if self._attachment is None:
            return
        steps = args.gradient_accumulation_steps
        if self._batches_left is not None:
            steps = max(1, min(steps, self._batches_left))
            self._batches_left -= steps
        self._attachment.accumulate = steps

    def on_train_end(self, *_: Any, **kwargs: Any) -> None:
        """Detach the selector."""
        self.selector.end()
