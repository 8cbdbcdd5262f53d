"""Planned learning rates of a run, read from its scheduler before the run."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from riprap.detectors import RateSchedule

Scheduler = LRScheduler | Callable[[int], float]


def planned_rates(first: int, steps: int, scheduler: Any) -> RateSchedule:
    """Return the plan of the next `steps` steps, with the learning rates that can be known.

    A scheduler is read from where it stands, and stays there: a copy of it, around an optimizer
    without weights, makes the steps. One that waits for a metric has no known rates.

    Args:
        first: number of steps before the plan.
        scheduler: see `Monitor.watch`.
    """
    inner = getattr(scheduler, "scheduler", scheduler)  # Accelerate wraps schedulers
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if several and not getattr(scheduler, "split_batches", True):
        return RateSchedule(first, steps)  # Accelerate steps it once for each process
    rates: list[float] | None = None
    if isinstance(inner, LRScheduler):
        if not isinstance(inner, ReduceLROnPlateau):
            rates = _rates_of(inner, steps)
    elif callable(scheduler):
        rates = [float(scheduler(step)) for step in range(steps)]
    if rates is not None and not all(0 <= rate < math.inf for rate in rates):
        raise ValueError("a planned learning rate is negative, or no number")
    return RateSchedule(first, steps) if rates is None else RateSchedule.of_rates(first, rates)


def _rates_of(scheduler: LRScheduler, steps: int) -> list[float]:
    real = scheduler.optimizer
    groups = [
        {name: value for name, value in group.items() if name != "params"}
        | {"params": [torch.zeros(1)]}
        for group in real.param_groups
    ]
    stand_in = torch.optim.SGD(groups, lr=0.0)
    for group, own in zip(stand_in.param_groups, groups, strict=True):
        group.update({name: _plain(value) for name, value in own.items() if name != "params"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stand-in makes no steps before the scheduler's
        twin = copy.deepcopy(scheduler, {id(real): stand_in})
        rates: list[float] = []
        for _ in range(steps):
            rates.append(max(float(group["lr"]) for group in stand_in.param_groups))
            twin.step()
    return rates


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, torch.Tensor) and value.numel() == 1 else value
