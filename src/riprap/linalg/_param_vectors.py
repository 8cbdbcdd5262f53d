"""Vectors in parameter space: lists of tensors, one for each parameter, never concatenated.

Inner products are summed in at least float32, so that half-precision parameters do not overflow, in
blocks whose totals are added in float64: on a CPU a float32 sum over 1e7 elements is off by 0.1 %.

Parameters may be sharded over ranks (FSDP2's DTensors): every rank sums over its own shards, and
only small vectors of sums are communicated. Gradients are never gathered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

Vector = list[Tensor]  # one tensor per parameter, in a fixed order

# Elements that are summed in float32. CPUs add them one after the other, so rounding errors grow
# with the length; accelerators add in trees, but `torch.dot` overflows above 2**31 elements.
CPU_BLOCK_ELEMENTS = 2**17
BLOCK_ELEMENTS = 2**30


def to_local(part: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor, as a view; any other tensor unchanged."""
    return part.to_local() if isinstance(part, DTensor) else part


def densify(part: Tensor) -> Tensor:
    """Return a sparse gradient, as of `nn.Embedding(sparse=True)`, dense; any other unchanged."""
    return part if part.layout == torch.strided else part.to_dense()


def is_sharded(part: Tensor) -> bool:
    """Return whether each rank has only a part of the tensor, as under FSDP2."""
    return isinstance(part, DTensor) and any(p.is_shard() for p in part.placements)


def split_blocks(part: Tensor) -> tuple[Tensor, ...]:
    """Split the last dimension into the blocks that are summed in the tensor's own precision."""
    size = CPU_BLOCK_ELEMENTS if part.device.type == "cpu" else BLOCK_ELEMENTS
    return (part,) if part.shape[-1] <= size else part.split(size, -1)


def to_float64(values: Tensor) -> Tensor:
    """Convert sums to float64, on devices that have it (MPS does not)."""
    return values if values.device.type == "mps" else values.double()


def all_reduce_sums(parts: Iterable[tuple[DeviceMesh | None, Tensor]]) -> Tensor:
    """Add up values of single tensors; those of sharded tensors are summed over their ranks.

    One small all-reduce for each mesh; every rank must call it.
    """
    sums: dict[DeviceMesh | None, Tensor] = {}
    for mesh, values in parts:
        sums[mesh] = sums[mesh] + values if mesh in sums else values
    for mesh, values in sums.items():
        if mesh is not None:
            for dimension in range(mesh.ndim):
                dist.all_reduce(values, group=mesh.get_group(dimension))
    return torch.stack(list(sums.values())).sum(0)


def device_mesh(part: Tensor) -> DeviceMesh | None:
    """Return the device mesh of a sharded tensor; None for any other tensor."""
    return part.device_mesh if isinstance(part, DTensor) and is_sharded(part) else None


def upcast(tensor: Tensor) -> Tensor:
    """Convert a half-precision tensor to float32; return any other unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _inner(left: Tensor, right: Tensor) -> Tensor:
    left, right = upcast(to_local(left)).reshape(-1), upcast(to_local(right)).reshape(-1)
    pairs = zip(split_blocks(left), split_blocks(right.to(left.dtype)), strict=True)
    return sum_in_float64([torch.dot(own, other) for own, other in pairs])


def sum_in_float64(sums: Sequence[Tensor]) -> Tensor:
    """Add up the sums of blocks, of equal shapes."""
    return to_float64(sums[0]) if len(sums) == 1 else to_float64(torch.stack(list(sums))).sum(0)


def inner_products(vector: Sequence[Tensor], others: Sequence[Sequence[Tensor]]) -> Tensor:
    """Compute ⟨vector, other⟩ for each of `others`; shape (len(others),).

    Products are reduced on each parameter's device; only scalars are moved.
    """
    if not others:
        return torch.zeros(0)
    device = to_local(vector[0]).device
    return all_reduce_sums(
        (device_mesh(part), torch.stack([_inner(part, other).to(device) for other in rest]))
        for part, *rest in zip(vector, *others, strict=True)
    )


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Compute ⟨left, right⟩, a scalar tensor on the first tensor's device."""
    return inner_products(left, [right])[0]


def norm(vector: Sequence[Tensor]) -> Tensor:
    """Compute the Euclidean norm ‖vector‖₂, a scalar tensor on the first tensor's device."""
    device = to_local(vector[0]).device
    groups: dict[DeviceMesh | None, list[Tensor]] = {}
    for part in vector:
        blocks = split_blocks(upcast(to_local(part)).reshape(-1))
        groups.setdefault(device_mesh(part), []).extend(blocks)
    return all_reduce_sums(
        (mesh, sum_squares([own.to(device) for own in torch._foreach_norm(blocks)]))
        for mesh, blocks in groups.items()
    ).sqrt()


def sum_squares(norms: Sequence[Tensor]) -> Tensor:
    """Add up the squares of the norms of blocks, in float64."""
    return to_float64(torch.stack(list(norms))).square().sum()


def row_products(rows: Tensor, part: Tensor) -> Tensor:
    """Compute the inner product of each row with `part`, shape (n,), in float64.

    Args:
        rows: shape (n, elements).
        part: shape (elements,), of the same dtype.
    """
    pairs = zip(split_blocks(rows), split_blocks(part), strict=True)
    return sum_in_float64([torch.mv(own, other) for own, other in pairs])


def row_squares(rows: Tensor) -> Tensor:
    """Compute the squared norm of each row of shape (n, …), shape (n,), in at least float32."""
    blocks = split_blocks(upcast(rows).flatten(1))
    if len(blocks) == 1:
        return torch.linalg.vector_norm(blocks[0], dim=1).square()
    norms = torch.stack([torch.linalg.vector_norm(block, dim=1) for block in blocks])
    return to_float64(norms).square().sum(0).to(norms.dtype)


def clone(vector: Sequence[Tensor]) -> Vector:
    """Return a detached copy."""
    return [part.detach().clone() for part in vector]


def copy_into(target: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    """Overwrite `target` with `source` in place."""
    torch._foreach_copy_([to_local(p) for p in target], [to_local(p).detach() for p in source])


def subtract(left: Sequence[Tensor], right: Sequence[Tensor]) -> Vector:
    """Compute left − right, as new tensors."""
    return list(torch._foreach_sub([part.detach() for part in left], list(right)))


class Differences(Sequence[Tensor]):
    """The vector now − before, of which a tensor is computed when it is read.

    Args:
        now, before: one tensor for each parameter; they must not change while it is read.
    """

    def __init__(self, now: Sequence[Tensor], before: Sequence[Tensor]) -> None:
        self.now, self.before = now, before

    def __len__(self) -> int:
        return len(self.now)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Vector: ...

    def __getitem__(self, index: int | slice) -> Tensor | Vector:
        if isinstance(index, slice):
            return subtract(self.now[index], self.before[index])
        return self.now[index].detach() - self.before[index]


def add(vector: Sequence[Tensor], other: Sequence[Tensor], factor: float = 1.0) -> Vector:
    """Compute vector + factor · other, as new tensors with the vector's dtypes and sharding."""
    own = [to_local(part).detach() for part in vector]
    sums = torch._foreach_add([upcast(p) for p in own], [to_local(p) for p in other], alpha=factor)
    return as_sharded([p.to(like.dtype) for p, like in zip(sums, own, strict=True)], vector)


def sum_vectors(vectors: Sequence[Vector]) -> Vector:
    """Return the sum of one or more vectors, as new tensors."""
    result = [part.clone() for part in vectors[0]]
    for vector in vectors[1:]:
        torch._foreach_add_(result, vector)
    return result


def as_sharded(parts: Sequence[Tensor], like: Sequence[Tensor]) -> Vector:
    """Return this rank's shards as sharded tensors like those of `like`; others unchanged.

    Norms and products of the result are then those over all ranks.
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
    """Return the vector in at least float32, detached; for sharded tensors this rank's shards."""
    return [upcast(to_local(part).detach()) for part in vector]


def cosine(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Compute cos(left, right), a scalar tensor; NaN if one of the vectors is 0."""
    return dot(left, right) / (norm(left) * norm(right))
