"""Helpers for several ranks: rank, wrapped and sharded models and optimizers, common decisions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from riprap._warnings import warn
from riprap.errors import BehaviorError
from riprap.linalg import is_sharded, to_local

MAX_WRAPPERS = 5  # more than occur around an optimizer


def rank() -> int:
    """Return the rank in the process group; before there is one, that of a launcher of several."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return int(os.environ.get("RANK", "0"))
    return 0  # a RANK without other ranks is left over from somewhere else


def warn_once(text: str) -> None:
    """Warn on the first rank only, of what all ranks see alike.

    What one rank alone may see is for `warn`: the record is written by the first rank.
    """
    if rank() == 0:
        warn(text)


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model inside DDP: a pass through the wrapper would prepare a reduction."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def unwrap_optimizer(optimizer: Any) -> Any:
    """Return the torch optimizer inside wrappers such as Accelerate's; else `optimizer` itself."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def find_deepspeed(wrapper: Any) -> Any:
    """Return DeepSpeed's engine or optimizer, also inside wrappers; None if there is none.

    The engine steps a flat copy of the parameters itself. A hook on the torch optimizer inside it,
    or on the one around it (Accelerate's wrapper), is never called, or sees no change.
    """
    for _ in range(MAX_WRAPPERS):
        if any(kind.__module__.startswith("deepspeed.runtime") for kind in type(wrapper).__mro__):
            return wrapper
        wrapper = getattr(wrapper, "optimizer", None)
    return None


def is_replica(model: nn.Module) -> bool:
    """Return whether this rank is one of several that each have all weights, as under DDP."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return several and not has_sharded_parameters(model)


def has_sharded_parameters(model: nn.Module) -> bool:
    """Return whether parameters are sharded, so that every pass needs all ranks.

    Those of DeepSpeed's ZeRO stage 3 have a `ds_id`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return False
    return any(is_sharded(p) or hasattr(p, "ds_id") for p in model.parameters())


@contextmanager
def raise_on_all_ranks(model: nn.Module) -> Iterator[None]:
    """Raise on all ranks if the body fails on one of them, for a sharded model.

    Otherwise the other ranks would wait forever in the next pass. The body must include the
    forward pass: a rank that fails before it blocks the others at once.

    Raises:
        BehaviorError: another rank failed.
    """
    if not has_sharded_parameters(model):
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 raised again below, after the others are informed
        failure = error
    device = next(to_local(parameter).device for parameter in model.parameters())
    failed = torch.tensor([float(failure is not None)], device=device)
    dist.all_reduce(failed)
    if failure is not None:
        raise failure
    if failed.item():
        raise BehaviorError("the probes failed on another rank")


def reshard(model: nn.Module) -> None:
    """Free the parameters that FSDP2 gathered for a pass.

    After a forward pass without a backward pass, the outermost FSDP2 module keeps its parameters
    gathered, and would miss the optimizer's next update.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def min_over_ranks(value: float, device: torch.device) -> float:
    """Return the smallest value of all ranks; all of them must call this."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return value
    smallest = torch.tensor(float(value), device=device)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    return float(smallest)


def all_ranks(holds: bool, device: torch.device) -> bool:
    """Return whether a condition holds on all ranks; all of them must call this."""
    return bool(min_over_ranks(holds, device))
