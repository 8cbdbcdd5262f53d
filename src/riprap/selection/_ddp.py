"""Selection over ranks: numbers of all samples go round, gradients are summed, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from riprap.linalg import Vector
from riprap.selection._scores import Array, Scores


@dataclass
class Share:
    """What one rank knows of its samples.

    Attributes:
        weights: of each sample in the loss of its rank, shape (n,).
        ids: what each is called.
        reached: places of the parameters that were given gradients.
    """

    scores: Scores
    weights: Array
    ids: list[Any]
    reached: list[int]


def over_ranks(own: Share, ddp: DistributedDataParallel | None) -> tuple[Share, range, list[int]]:
    """Everyone's samples one rank after another, which of them are this rank's, all places."""
    if ddp is None:
        return own, range(len(own.ids)), own.reached
    shares: list[Any] = [None] * dist.get_world_size(ddp.process_group)
    dist.all_gather_object(shares, own, group=ddp.process_group)
    starts = np.cumsum([0, *(len(share.ids) for share in shares)]).tolist()
    rank = dist.get_rank(ddp.process_group)
    places = sorted({place for share in shares for place in share.reached})
    ids = [name for share in shares for name in share.ids]
    if ids == [name for share in shares for name in range(len(share.ids))]:
        ids = list(range(len(ids)))
    joined = Share(
        Scores.joined([share.scores for share in shares]),
        np.concatenate([share.weights for share in shares]),
        ids,
        places,
    )
    return joined, range(starts[rank], starts[rank + 1]), places


def sum_over_ranks(vector: Vector, ddp: DistributedDataParallel | None) -> None:
    """The mean over ranks in place, as DDP takes it."""
    if ddp is None:
        return
    for part in vector:
        dist.all_reduce(part, group=ddp.process_group)
        part.div_(dist.get_world_size(ddp.process_group))
