"""Checks of a monitor's arguments: each error is one sentence that says what would be right."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch

from riprap._text import shorten
from riprap.behaviors import Behavior
from riprap.detectors import AlertPolicy
from riprap.errors import ConfigError
from riprap.guards import Guard
from riprap.linalg import STORAGE_DTYPES
from riprap.monitor._trackers import Tracker
from riprap.signals import Signal
from riprap.types import Level


def check_arguments(behaviors: Sequence[Behavior], probe_every: Any, storage: str) -> None:
    """Check the behaviors, the interval and the storage of gradients.

    Raises:
        ConfigError: what is wrong.
    """
    if isinstance(behaviors, Behavior):
        raise ConfigError(
            "nothing to monitor: give a list of behaviors, as in "
            f"Monitor([{_name_of(behaviors.name)}])"
        )
    if isinstance(behaviors, str) or not isinstance(behaviors, Sequence):
        raise ConfigError(
            f"nothing to monitor: give a list of behaviors, not a {type(behaviors).__name__}"
        )
    for behavior in behaviors:
        if not isinstance(behavior, Behavior):
            hint = "riprap.Behavior makes one"
            if isinstance(behavior, str):
                hint = f"riprap.probe_sets.load({shorten(behavior)!r}, tokenizer) makes one"
            raise ConfigError(
                f"nothing to monitor: give a list of behaviors, and {_shown(behavior)} is none; "
                f"{hint}"
            )
    if not behaviors:
        raise ConfigError("nothing to monitor: give at least one behavior")
    # As displayed: names that differ only in Unicode normalization look the same.
    names = [shorten(unicodedata.normalize("NFC", behavior.name)) for behavior in behaviors]
    duplicates = {name for name in names if names.count(name) > 1}
    if duplicates:
        raise ConfigError(f"two behaviors are called {duplicates.pop()!r}: names must be unique")
    if isinstance(probe_every, bool) or not isinstance(probe_every, Integral) or probe_every < 1:
        raise ConfigError(f"probe_every={probe_every}: give at least 1 step, as a whole number")
    if storage not in STORAGE_DTYPES:
        choices = ", ".join(STORAGE_DTYPES)
        raise ConfigError(f"gradient_storage={storage!r}: choose one of {choices}")


def check_options(policy: Any, signals: Any, stop_on: Any, on_alert: Any, modules: Any) -> None:
    """Check the other arguments of a monitor.

    Raises:
        ConfigError: what is wrong.
    """
    if policy is not None and not isinstance(policy, AlertPolicy):
        if isinstance(policy, str):
            name = shorten(policy)
            right = f"give AlertPolicy.named({name!r}), or AlertPolicy.load(path) for a file"
        else:
            right = "give a riprap.AlertPolicy, or None for the default"
        raise ConfigError(f"policy={_shown(policy)} is no alert policy: {right}")
    if signals is not None:
        listed = isinstance(signals, Sequence) and not isinstance(signals, str)
        wrong = [one for one in signals if not isinstance(one, Signal)] if listed else [signals]
        if wrong:
            raise ConfigError(
                f"signals: {_shown(wrong[0])} is no signal; give a list of riprap.signals.Signal "
                "objects, such as riprap.signals.default()"
            )
    if stop_on is not None and stop_on not in list(Level):
        raise ConfigError(f"stop_on={stop_on!r}: choose one of {', '.join(Level)}, or None")
    if on_alert is not None and not callable(on_alert):
        raise ConfigError(
            f"on_alert={_shown(on_alert)} cannot be called: give a function that takes an Alert"
        )
    if isinstance(modules, str):
        raise ConfigError(f"modules={modules!r}: give a list of names, as in modules=[{modules!r}]")


def check_guard(guard: Any, n_optimizers: int) -> None:
    """Check the guard of a watch.

    Raises:
        ConfigError: it is no guard, or there are several optimizers.
    """
    if guard is None:
        return
    if not isinstance(guard, Guard):
        raise ConfigError(
            f"guard={_shown(guard)} is no guard: give an object of riprap.guards, such as "
            "riprap.guards.AutoGuard([behavior], replay=...)"
        )
    if n_optimizers > 1:
        raise ConfigError(
            f"guard {guard.name}: a guard changes the step of one optimizer, and {n_optimizers} "
            "are watched; watch them without a guard"
        )


def _shown(thing: Any) -> str:
    """Show a short text as it is, and of anything else only the type."""
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    if isinstance(thing, str | int | float):
        return repr(shorten(thing) if isinstance(thing, str) else thing)
    return f"a {type(thing).__name__}"


def _name_of(name: str) -> str:
    return name if name.isidentifier() else "behavior"


def check_autocast(autocast: Any) -> None:
    """Check the autocast state of the probes.

    Raises:
        ConfigError: it is no state.
    """
    halves = (torch.bfloat16, torch.float16)
    if autocast is not None and not isinstance(autocast, bool) and autocast not in halves:
        raise ConfigError(
            f"autocast={_shown(autocast)}: give torch.bfloat16, torch.float16, False for none, or "
            "None for the state in which the model is trained"
        )


def check_budget(budget: Any) -> None:
    """Check the share of the training time that a monitor may take.

    Raises:
        ConfigError: it is no share.
    """
    is_number = isinstance(budget, Real) and not isinstance(budget, bool)
    if budget is not None and not (is_number and 0 < budget <= 1):
        raise ConfigError(
            f"budget={_shown(budget)}: give a share of the training time, such as 0.03 for 3 %, or "
            "None for no limit"
        )


def check_plan(steps: Any, scheduler: Any) -> None:
    """Check the planned steps of a watch, and their scheduler.

    Raises:
        ConfigError: `steps` is no number of steps, or the scheduler has no steps or is none.
    """
    is_count = isinstance(steps, int) and not isinstance(steps, bool)
    if steps is not None and not (is_count and steps >= 0):
        raise ConfigError(f"steps={_shown(steps)}: give the number of optimizer steps to come")
    if scheduler is None:
        return
    if steps is None:
        raise ConfigError(
            "a scheduler says nothing without the number of steps to come: give steps as well"
        )
    if isinstance(scheduler, type) or not (
        callable(scheduler) or hasattr(getattr(scheduler, "scheduler", scheduler), "step")
    ):
        raise ConfigError(
            f"scheduler={_shown(scheduler)}: give a torch.optim.lr_scheduler.LRScheduler, or a "
            "function that returns the learning rate of a step"
        )


def check_trackers(trackers: Any) -> None:
    """Check the trackers of a monitor.

    Raises:
        ConfigError: one is no tracker.
    """
    listed = isinstance(trackers, Sequence) and not isinstance(trackers, str)
    wrong = [one for one in trackers if not isinstance(one, Tracker)] if listed else [trackers]
    if wrong:
        raise ConfigError(
            f"trackers: {_shown(wrong[0])} is no tracker; give a list of objects of "
            "riprap.integrations.trackers, such as [CSV('numbers.csv')]"
        )
