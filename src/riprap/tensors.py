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

DOT_LIMIT = 2**31  # torch.dot overflows above this many elements
CHUNK = 2**22  # elements joined at a time


def local(part: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor, as a view; any other tensor as it is."""
    return part.to_local() if isinstance(part, DTensor) else part


def is_sharded(part: Tensor) -> bool:
    """Whether each rank holds a part only, as under FSDP2."""
    return isinstance(part, DTensor) and any(p.is_shard() for p in part.placements)


def _over_ranks(sums: dict[DeviceMesh | None, Tensor]) -> Tensor:
    """The total of sums over parts, those of sharded parts summed over the ranks of their mesh.

    One small all-reduce a mesh; every rank must take part.
    """
    for mesh, values in sums.items():
        if mesh is not None:
            for dimension in range(mesh.ndim):
                dist.all_reduce(values, group=mesh.get_group(dimension))
    return torch.stack(list(sums.values())).sum(0)


def _mesh(part: Tensor) -> DeviceMesh | None:
    return part.device_mesh if isinstance(part, DTensor) and is_sharded(part) else None


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _inner(left: Tensor, right: Tensor) -> Tensor:
    left, right = _wide(local(left)).reshape(-1), _wide(local(right)).reshape(-1)
    if left.numel() < DOT_LIMIT:
        return torch.dot(left, right.to(left.dtype))
    return (left * right).sum()


def dots(vector: Sequence[Tensor], others: Sequence[Sequence[Tensor]]) -> Tensor:
    """⟨vector, other⟩ for each of `others`; shape (len(others),).

    Each parameter's products are reduced where it lives; only scalars travel.
    """
    if not others:
        return torch.zeros(0)
    home = local(vector[0]).device
    sums: dict[DeviceMesh | None, Tensor] = {}
    for part, *rest in zip(vector, *others, strict=True):
        products = torch.stack([_inner(part, other).to(home) for other in rest])
        mesh = _mesh(part)
        sums[mesh] = sums[mesh] + products if mesh in sums else products
    return _over_ranks(sums)


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """⟨left, right⟩ as a scalar tensor on the first tensor's device."""
    return dots(left, [right])[0]


def norm(vector: Sequence[Tensor]) -> Tensor:
    """Euclidean norm ‖vector‖₂ as a scalar tensor."""
    home = local(vector[0]).device
    groups: dict[DeviceMesh | None, list[Tensor]] = {}
    for part in vector:
        groups.setdefault(_mesh(part), []).append(_wide(local(part)))
    squares = {
        mesh: torch.stack([one.to(home) for one in torch._foreach_norm(parts)]).square().sum()
        for mesh, parts in groups.items()
    }
    return _over_ranks(squares).sqrt()


def clone(vector: Sequence[Tensor]) -> Vector:
    """A detached copy."""
    return [part.detach().clone() for part in vector]


def copy_into(target: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    """Overwrite `target` by `source` in place."""
    torch._foreach_copy_([local(p) for p in target], [local(p).detach() for p in source])


def subtract(left: Sequence[Tensor], right: Sequence[Tensor]) -> Vector:
    """left − right, as new tensors."""
    return list(torch._foreach_sub([part.detach() for part in left], list(right)))


def cosine(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """cos(left, right) as a scalar tensor; NaN where one of them is 0."""
    return dot(left, right) / (norm(left) * norm(right))


def chunks(like: Sequence[Tensor]) -> list[slice]:
    """Runs of neighbouring parameters that are worth joining: few kernels, little extra memory.

    Parts of one chunk share device and dtype and hold at most `CHUNK` elements together; a larger
    part stands alone, and is never copied.
    """
    found: list[slice] = []
    begin, held = 0, 0
    for index, part in enumerate(like):
        alike = index > begin and _home(part) == _home(like[begin])
        if index > begin and (not alike or held + part.numel() > CHUNK):
            found.append(slice(begin, index))
            begin, held = index, 0
        held += part.numel()
    return [*found, slice(begin, len(like))] if like else []


def _home(part: Tensor) -> tuple[torch.device, torch.dtype, DeviceMesh | None]:
    return part.device, part.dtype, _mesh(part)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts one after another, shape (elements,), in at least float32."""
    if len(parts) == 1:
        return _wide(local(parts[0])).reshape(-1)
    return _wide(torch.cat([local(part).reshape(-1) for part in parts]))


class Stack:
    """Several vectors side by side, so that one pass gives the inner products with all of them.

    Args:
        vectors: by name, all over the same parameters. They are kept chunk by chunk where they
            live, which costs one copy of each vector.
    """

    def __init__(self, vectors: dict[str, Vector]) -> None:
        self.names = list(vectors)
        every = list(vectors.values())
        self._chunks = chunks(every[0]) if every else []
        self._meshes = [_mesh(every[0][chunk.start]) for chunk in self._chunks]
        self._rows = [
            torch.stack([_joined(vector[chunk]) for vector in every]) for chunk in self._chunks
        ]
        self.norms = {name: float(norm(vector)) for name, vector in vectors.items()}

    def dots(self, vector: Sequence[Tensor]) -> dict[str, float]:
        """⟨vector, other⟩ for each of the stacked vectors, by name."""
        if not self.names:
            return {}
        home = self._rows[0].device
        sums: dict[DeviceMesh | None, Tensor] = {}
        for rows, chunk, mesh in zip(self._rows, self._chunks, self._meshes, strict=True):
            products = torch.mv(rows, _joined(vector[chunk]).to(rows.dtype)).to(home)
            sums[mesh] = sums[mesh] + products if mesh in sums else products
        return dict(zip(self.names, _over_ranks(sums).tolist(), strict=True))

    def vector(self, name: str, like: Sequence[Tensor]) -> Vector:
        """One of the stacked vectors, in the shapes of `like`; of sharded ones this rank's part."""
        row = self.names.index(name)
        found: Vector = []
        for rows, chunk in zip(self._rows, self._chunks, strict=True):
            shapes = [local(part).shape for part in like[chunk]]
            parts = rows[row].split([shape.numel() for shape in shapes])
            found += [one.view(shape) for one, shape in zip(parts, shapes, strict=True)]
        return found
