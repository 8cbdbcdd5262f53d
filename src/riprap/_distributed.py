"""Several ranks: which one this is, and the model under what spreads it over them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from riprap.errors import BehaviorError
from riprap.linalg import is_sharded, to_local


def rank() -> int:
    """This process's rank; 0 where there is one process only.

    Before the process group is up, what the launcher (`torchrun`, `accelerate launch`) says.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0"))


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside DDP: a pass through the wrapper would prepare for a reduction."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def has_sharded_parameters(model: nn.Module) -> bool:
    """Whether the parameters are spread over ranks, so that every pass needs all of them."""
    return any(is_sharded(parameter) for parameter in model.parameters())


@contextmanager
def raise_on_all_ranks(model: nn.Module) -> Iterator[None]:
    """What fails on one rank fails on all, where all are needed for what comes next.

    A rank that gave up alone would leave the others waiting in the passes of a sharded model. The
    failure must come after the rank's own forward pass: before it, the others wait already.

    Raises:
        BehaviorError: another rank failed.
    """
    if not has_sharded_parameters(model):
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 raised again below, once the others know
        failure = error
    device = next(to_local(parameter).device for parameter in model.parameters())
    failed = torch.tensor([float(failure is not None)], device=device)
    dist.all_reduce(failed)
    if failure is not None:
        raise failure
    if failed.item():
        raise BehaviorError("the probes failed on another rank")


def reshard(model: nn.Module) -> None:
    """Give back what a pass gathered.

    After a forward pass without a backward one the outermost FSDP2 module keeps its parameters
    gathered, and would not see the optimizer's next update.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def all_ranks(holds: bool, device: torch.device) -> bool:
    """Whether something holds on every rank; all of them must ask."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return holds
    flag = torch.tensor(float(holds), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())
