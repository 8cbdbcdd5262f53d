"""DDP support for selection: all-gather sample scores, all-reduce gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from riprap.linalg import Vector
from riprap.selection._scores import Array, Scores


@dataclass
class RankSamples:
    """Samples of one rank, or of all ranks one after another."""

    scores: Scores
    weights: Array  # of each sample in the loss of its rank, shape (n,)
    ids: list[Any]
    param_indices: list[int]  # of the parameters that received gradients


def all_gather_samples(
    own: RankSamples, ddp: DistributedDataParallel | None
) -> tuple[RankSamples, range]:
    """Return the samples of all ranks, and the range of them that belongs to this rank."""
    if ddp is None:
        return own, range(len(own.ids))
    by_rank: list[Any] = [None] * dist.get_world_size(ddp.process_group)
    dist.all_gather_object(by_rank, own, group=ddp.process_group)
    starts = np.cumsum([0, *(len(samples.ids) for samples in by_rank)]).tolist()
    rank = dist.get_rank(ddp.process_group)
    ids = [row_id for samples in by_rank for row_id in samples.ids]
    if ids == [index for samples in by_rank for index in range(len(samples.ids))]:
        ids = list(range(len(ids)))
    gathered = RankSamples(
        Scores.concatenate([samples.scores for samples in by_rank]),
        np.concatenate([samples.weights for samples in by_rank]),
        ids,
        sorted({index for samples in by_rank for index in samples.param_indices}),
    )
    return gathered, range(starts[rank], starts[rank + 1])


def all_reduce_mean(vector: Vector, ddp: DistributedDataParallel | None) -> None:
    """Average a vector over the ranks in place, as DDP averages gradients."""
    if ddp is None:
        return
    for part in vector:
        dist.all_reduce(part, group=ddp.process_group)
        part.div_(dist.get_world_size(ddp.process_group))
