"""Planned learning rates of a run, read from its scheduler before the run."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from riprap._distributed import unwrap_optimizer
from riprap._text import first_line
from riprap.detectors import RateSchedule
from riprap.errors import ConfigError
from riprap.monitor._optimizers import learning_rate

Scheduler = LRScheduler | Callable[[int], float]


def check_scheduler(scheduler: Any, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Check that a scheduler tells the rates of these optimizers, beginning with the next step.

    A function could also return factors of a rate, or count the steps from another one. Its first
    number shows it: that must be the rate that the optimizers have now.

    Raises:
        ConfigError: the first rate is another one.
    """
    inner = getattr(scheduler, "scheduler", scheduler)
    if isinstance(inner, LRScheduler):
        own = unwrap_optimizer(inner.optimizer)
        if any(own is one for one in optimizers):
            return
        first = float(learning_rate([own]))
        name = f"the optimizer of this {type(inner).__name__} has the rate"
        advice = "give the scheduler of a watched optimizer"
    elif callable(scheduler):
        name = "scheduler(0) is"
        advice = (
            "a function must return the learning rate, not a factor of it, of each step from now "
            "on, counted from 0; if your loop sets the rate itself, set that of the next step "
            "before the watch"
        )
        try:
            first = float(scheduler(0))
        except Exception as error:  # of the user's function
            why = first_line(error, type(error).__name__)
            raise ConfigError(f"scheduler(0) failed ({why}): {advice}") from error
    else:
        return
    now = float(learning_rate(optimizers))
    if not (math.isnan(now) or math.isclose(first, now, rel_tol=1e-3)):
        raise ConfigError(
            f"{name} {first:g}, and the watched optimizer has the rate {now:g} now: {advice}"
        )


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
