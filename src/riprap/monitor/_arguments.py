"""Checks of a monitor's arguments: each error is one sentence that says what would be right."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from riprap._checks import check_count, is_number, shown
from riprap._text import shorten
from riprap.behaviors import Behavior, require_behaviors
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
    require_behaviors(behaviors, "nothing to monitor", "Monitor([{}])")
    # As displayed: names that differ only in Unicode normalization look the same.
    names = [shorten(unicodedata.normalize("NFC", behavior.name)) for behavior in behaviors]
    duplicates = {name for name in names if names.count(name) > 1}
    if duplicates:
        raise ConfigError(f"two behaviors are called {duplicates.pop()!r}: names must be unique")
    check_count("probe_every", probe_every)
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
        raise ConfigError(f"policy={shown(policy)} is no alert policy: {right}")
    if signals is not None and (wrong := _not_all(Signal, signals)):
        raise ConfigError(
            f"signals: {shown(wrong[0])} is no signal; give a list of riprap.signals.Signal "
            "objects, such as riprap.signals.default()"
        )
    if stop_on is not None and stop_on not in list(Level):
        raise ConfigError(f"stop_on={stop_on!r}: choose one of {', '.join(Level)}, or None")
    if on_alert is not None and not callable(on_alert):
        raise ConfigError(
            f"on_alert={shown(on_alert)} cannot be called: give a function that takes an Alert"
        )
    if isinstance(modules, str):
        raise ConfigError(f"modules={modules!r}: give a list of names, as in modules=[{modules!r}]")
    if not isinstance(modules, Sequence) or not all(isinstance(name, str) for name in modules):
        raise ConfigError(f"modules={shown(modules)}: give a list of names of modules")


def check_facts(run_dir: Any, metadata: Any) -> None:
    """Check the folder and the metadata of a monitor.

    Raises:
        ConfigError: what is wrong.
    """
    if run_dir is not None and not isinstance(run_dir, str | Path):
        raise ConfigError(
            f"run_dir={shown(run_dir)}: give a folder, or None for a record in memory"
        )
    if metadata is not None and not isinstance(metadata, dict):
        raise ConfigError(f"metadata={shown(metadata)}: give a dict of plain values, or None")


def check_guard(guard: Any, n_optimizers: int) -> None:
    """Check the guard of a watch.

    Raises:
        ConfigError: it is no guard, or there are several optimizers.
    """
    if guard is None:
        return
    if not isinstance(guard, Guard):
        raise ConfigError(
            f"guard={shown(guard)} is no guard: give an object of riprap.guards, such as "
            "riprap.guards.AutoGuard([behavior], replay=...)"
        )
    for leaf in guard.flatten():
        if leaf.refresh is not None:
            check_count(f"guard {leaf.name}: refresh", leaf.refresh, otherwise=", or None")
    if n_optimizers > 1:
        raise ConfigError(
            f"guard {guard.name}: a guard changes the step of one optimizer, and {n_optimizers} "
            "are watched; watch them without a guard"
        )


def check_autocast(autocast: Any) -> None:
    """Check the autocast state of the probes.

    Raises:
        ConfigError: it is no state.
    """
    halves = (torch.bfloat16, torch.float16)
    if autocast is not None and not isinstance(autocast, bool) and autocast not in halves:
        raise ConfigError(
            f"autocast={shown(autocast)}: give torch.bfloat16, torch.float16, False for none, or "
            "None for the state in which the model is trained"
        )


def check_budget(budget: Any) -> None:
    """Check the share of the training time that a monitor may take.

    Raises:
        ConfigError: it is no share.
    """
    if budget is not None and not (is_number(budget) and 0 < budget <= 1):
        raise ConfigError(
            f"budget={shown(budget)}: give a share of the training time, such as 0.03 for 3 %, or "
            "None for no limit"
        )


def check_plan(steps: Any, scheduler: Any) -> None:
    """Check the planned steps of a watch, and their scheduler.

    Raises:
        ConfigError: `steps` is no number of steps, or the scheduler has no steps or is none.
    """
    is_count = isinstance(steps, int) and not isinstance(steps, bool)
    if steps is not None and not (is_count and steps >= 0):
        raise ConfigError(f"steps={shown(steps)}: give the number of optimizer steps to come")
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
            f"scheduler={shown(scheduler)}: give a torch.optim.lr_scheduler.LRScheduler, or a "
            "function that returns the learning rate of a step"
        )


def check_trackers(trackers: Any) -> None:
    """Check the trackers of a monitor.

    Raises:
        ConfigError: one is no tracker.
    """
    if wrong := _not_all(Tracker, trackers):
        raise ConfigError(
            f"trackers: {shown(wrong[0])} is no tracker; give a list of objects of "
            "riprap.integrations.trackers, such as [CSV('numbers.csv')]"
        )


def _not_all(kind: type, given: Any) -> list[Any]:
    """Return what is not of a kind in a list; what is no list as a whole."""
    listed = isinstance(given, Sequence) and not isinstance(given, str)
    return [one for one in given if not isinstance(one, kind)] if listed else [given]
