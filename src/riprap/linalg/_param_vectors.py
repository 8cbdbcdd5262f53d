"""Vectors in parameter space: lists of tensors, one a parameter, never flattened into one.

Inner products are summed in at least float32, tensor by tensor, so that half-precision
parameters do not overflow and no tensor of more than 2**31 elements reaches `torch.dot`.

Parameters may be sharded over ranks (FSDP2's DTensors): every rank sums over its own shards, and
one small vector of sums travels. No gradient is ever gathered.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

Vector = list[Tensor]  # one tensor per parameter, in a fixed order

MAX_DOT_ELEMENTS = 2**31  # torch.dot overflows above this many elements


def to_local(part: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor, as a view; any other tensor as it is."""
    return part.to_local() if isinstance(part, DTensor) else part


def is_sharded(part: Tensor) -> bool:
    """Whether each rank holds a part only, as under FSDP2."""
    return isinstance(part, DTensor) and any(p.is_shard() for p in part.placements)


def all_reduce_sums(sums: dict[DeviceMesh | None, Tensor]) -> Tensor:
    """The total of sums over parts, those of sharded parts summed over the ranks of their mesh.

    One small all-reduce a mesh; every rank must take part.
    """
    for mesh, values in sums.items():
        if mesh is not None:
            for dimension in range(mesh.ndim):
                dist.all_reduce(values, group=mesh.get_group(dimension))
    return torch.stack(list(sums.values())).sum(0)


def device_mesh(part: Tensor) -> DeviceMesh | None:
    """The mesh that a sharded tensor is spread over; None for any other."""
    return part.device_mesh if isinstance(part, DTensor) and is_sharded(part) else None


def upcast(tensor: Tensor) -> Tensor:
    """In at least float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _inner(left: Tensor, right: Tensor) -> Tensor:
    left, right = upcast(to_local(left)).reshape(-1), upcast(to_local(right)).reshape(-1)
    if left.numel() < MAX_DOT_ELEMENTS:
        return torch.dot(left, right.to(left.dtype))
    return (left * right).sum()


def inner_products(vector: Sequence[Tensor], others: Sequence[Sequence[Tensor]]) -> Tensor:
    """⟨vector, other⟩ for each of `others`; shape (len(others),).

    Each parameter's products are reduced where it lives; only scalars travel.
    """
    if not others:
        return torch.zeros(0)
    home = to_local(vector[0]).device
    sums: dict[DeviceMesh | None, Tensor] = {}
    for part, *rest in zip(vector, *others, strict=True):
        products = torch.stack([_inner(part, other).to(home) for other in rest])
        mesh = device_mesh(part)
        sums[mesh] = sums[mesh] + products if mesh in sums else products
    return all_reduce_sums(sums)


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """⟨left, right⟩ as a scalar tensor on the first tensor's device."""
    return inner_products(left, [right])[0]


def norm(vector: Sequence[Tensor]) -> Tensor:
    """Euclidean norm ‖vector‖₂ as a scalar tensor."""
    home = to_local(vector[0]).device
    groups: dict[DeviceMesh | None, list[Tensor]] = {}
    for part in vector:
        groups.setdefault(device_mesh(part), []).append(upcast(to_local(part)))
    squares = {
        mesh: torch.stack([one.to(home) for one in torch._foreach_norm(parts)]).square().sum()
        for mesh, parts in groups.items()
    }
    return all_reduce_sums(squares).sqrt()


def clone(vector: Sequence[Tensor]) -> Vector:
    """A detached copy."""
    return [part.detach().clone() for part in vector]


def copy_into(target: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    """Overwrite `target` by `source` in place."""
    torch._foreach_copy_([to_local(p) for p in target], [to_local(p).detach() for p in source])


def subtract(left: Sequence[Tensor], right: Sequence[Tensor]) -> Vector:
    """left − right, as new tensors."""
    return list(torch._foreach_sub([part.detach() for part in left], list(right)))


def add(vector: Sequence[Tensor], other: Sequence[Tensor], factor: float = 1.0) -> Vector:
    """vector + factor · other, as new tensors in the vector's precision, sharded as it is."""
    own = [to_local(part).detach() for part in vector]
    found = torch._foreach_add([upcast(p) for p in own], [to_local(p) for p in other], alpha=factor)
    return as_sharded([p.to(like.dtype) for p, like in zip(found, own, strict=True)], vector)


def as_sharded(parts: Sequence[Tensor], like: Sequence[Tensor]) -> Vector:
    """This rank's parts as parts of the sharded tensors that `like` holds; others as they are.

    Norms and products are then those over all ranks.
    """
    return [
        part
        if isinstance(part, DTensor) or not isinstance(whole, DTensor)
        else DTensor.from_local(
            part,
            whole.device_mesh,
            whole.placements,
            run_check=False,
            shape=whole.shape,
            stride=whole.stride(),
        )
        for part, whole in zip(parts, like, strict=True)
    ]


def upcast_vector(vector: Sequence[Tensor]) -> Vector:
    """The vector in at least float32, detached; of sharded ones this rank's part."""
    return [upcast(to_local(part).detach()) for part in vector]


def cosine(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """cos(left, right) as a scalar tensor; NaN where one of them is 0."""
    return dot(left, right) / (norm(left) * norm(right))
