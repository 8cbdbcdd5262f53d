"""Access to transformers' Trainer, which passes itself to no callback."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from riprap._text import error_text
from riprap._warnings import warn
from riprap.integrations.trackers import send_alert
from riprap.types import Alert

CONSOLE = (PrinterCallback, ProgressCallback)


def find_caller() -> tuple[Trainer | None, dict[str, Any]]:
    """Return the trainer that is calling a callback, and the variables of its calling method.

    Returns (None, {}) if no `Trainer` is calling.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            return owner, dict(frame.f_locals)
        frame = frame.f_back
    return None, {}


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder of this step's checkpoint; the trial's in a hyperparameter search.

    Call it from a callback's event.
    """
    trainer, _ = find_caller()
    root = str(args.output_dir)
    if trainer is not None:
        trial = getattr(trainer, "_trial", None) if state.is_hyper_param_search else None
        root = trainer._get_output_dir(trial)
    return Path(root) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def resumed_checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the checkpoint from which the trainer resumes. Call it from `on_train_begin`."""
    _, variables = find_caller()
    given = variables.get("resume_from_checkpoint")
    return Path(given) if isinstance(given, str | Path) else checkpoint_folder(args, state)


class TrackerLink:
    """Sends numbers and alerts to all trackers of a trainer, at the step to which they belong.

    A trainer calls the callbacks of `report_to` before the user's, and may return the logs that it
    passes to them as its result. So the numbers are an own call of the other callbacks' `on_log`,
    and an own entry of the log history; the trainer's logs are left as they are.

    The callback that sends has this link as `trackers`; it is not called. The link refers to no
    callback, so that a callback, its monitor and the lock of its record go with their last user.
    """

    def __init__(self) -> None:
        self._failed: set[int] = set()  # callbacks that cannot take the numbers

    def send(
        self,
        numbers: Mapping[str, float],
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        before_last: bool = False,
        **kwargs: Any,
    ) -> None:
        """Send numbers to all callbacks but the console's.

        Args:
            before_last: put them before the last entry of the log history, which stays the last.
        """
        logs = dict(numbers) | ({} if state.epoch is None else {"epoch": state.epoch})
        position = len(state.log_history) - (before_last and bool(state.log_history))
        state.log_history.insert(position, logs | {"step": state.global_step})
        for callback in self._callbacks():
            if "Progress" not in type(callback).__name__ and not isinstance(callback, CONSOLE):
                self._call(callback, args, state, control, logs, **kwargs)

    def show(
        self,
        numbers: Mapping[str, float],
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Show numbers on the trainer's console, as it shows its logs."""
        for callback in self._callbacks():
            if isinstance(callback, CONSOLE):
                self._call(callback, args, state, control, numbers, **kwargs)

    def send_alert(self, alert: Alert) -> None:
        """Pass an alert on to trackers that have alerts of their own: trackio and W&B."""
        names = {type(callback).__name__ for callback in self._callbacks()}
        for name, module in (("TrackioCallback", "trackio"), ("WandbCallback", "wandb")):
            tracker: Any = sys.modules.get(module)
            if name in names and tracker is not None:
                try:
                    send_alert(alert, tracker, tracker)
                except Exception as error:  # noqa: BLE001 a tracker's failure never ends a run
                    warn(f"{module} took no alert: {error}")

    def _callbacks(self) -> list[Any]:
        trainer, _ = find_caller()
        known = [] if trainer is None else trainer.callback_handler.callbacks
        others = [c for c in known if getattr(c, "trackers", None) is not self]
        return [c for c in others if id(c) not in self._failed]

    def _call(self, callback: Any, *event: Any, **kwargs: Any) -> None:
        args, state, control, logs = event
        try:
            callback.on_log(args, state, control, **kwargs | {"logs": dict(logs)})
        except Exception as error:  # noqa: BLE001 the user's callback may expect the trainer's logs
            self._failed.add(id(callback))
            text = error_text(error)
            warn(
                f"{type(callback).__name__} gets no numbers of the monitor, because its on_log "
                f"failed on them ({text})"
            )
