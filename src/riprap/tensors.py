"""Vectors in parameter space: lists of tensors, one a parameter, never flattened into one.

Inner products are summed in at least float32, tensor by tensor, so that half-precision
parameters do not overflow and no tensor of more than 2**31 elements reaches `torch.dot`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Vector = list[Tensor]  # one tensor per parameter, in a fixed order

DOT_LIMIT = 2**31  # torch.dot overflows above this many elements
CHUNK = 2**22  # elements joined at a time


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _inner(left: Tensor, right: Tensor) -> Tensor:
    left, right = _wide(left).reshape(-1), _wide(right).reshape(-1)
    if left.numel() < DOT_LIMIT:
        return torch.dot(left, right.to(left.dtype))
    return (left * right).sum()


def dots(vector: Sequence[Tensor], others: Sequence[Sequence[Tensor]]) -> Tensor:
    """⟨vector, other⟩ for each of `others`; shape (len(others),).

    Each parameter's products are reduced where it lives; only scalars travel.
    """
    if not others:
        return torch.zeros(0)
    home = vector[0].device
    inner = [
        [_inner(part, mine).to(home) for part, mine in zip(vector, other, strict=True)]
        for other in others
    ]
    return torch.stack([torch.stack(parts).sum() for parts in inner])


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """⟨left, right⟩ as a scalar tensor on the first tensor's device."""
    return dots(left, [right])[0]


def norm(vector: Sequence[Tensor]) -> Tensor:
    """Euclidean norm ‖vector‖₂ as a scalar tensor."""
    norms = torch._foreach_norm([_wide(part) for part in vector])
    home = norms[0].device
    return torch.linalg.vector_norm(torch.stack([part.to(home) for part in norms]))


def clone(vector: Sequence[Tensor]) -> Vector:
    """A detached copy."""
    return [part.detach().clone() for part in vector]


def copy_into(target: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    """Overwrite `target` by `source` in place."""
    torch._foreach_copy_(list(target), [part.detach() for part in source])


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
        alike = index > begin and (part.device, part.dtype) == (
            like[begin].device,
            like[begin].dtype,
        )
        if index > begin and (not alike or held + part.numel() > CHUNK):
            found.append(slice(begin, index))
            begin, held = index, 0
        held += part.numel()
    return [*found, slice(begin, len(like))] if like else []


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts one after another, shape (elements,), in at least float32."""
    if len(parts) == 1:
        return _wide(parts[0]).reshape(-1)
    return _wide(torch.cat([part.reshape(-1) for part in parts]))


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
        self._rows = [
            torch.stack([_joined(vector[chunk]) for vector in every]) for chunk in self._chunks
        ]
        self.norms = {name: float(norm(vector)) for name, vector in vectors.items()}

    def dots(self, vector: Sequence[Tensor]) -> dict[str, float]:
        """⟨vector, other⟩ for each of the stacked vectors, by name."""
        if not self.names:
            return {}
        home = self._rows[0].device
        products = [
            torch.mv(rows, _joined(vector[chunk]).to(rows.dtype)).to(home)
            for rows, chunk in zip(self._rows, self._chunks, strict=True)
        ]
        totals = torch.stack(products).sum(0).tolist()
        return dict(zip(self.names, totals, strict=True))

    def vector(self, name: str, like: Sequence[Tensor]) -> Vector:
        """One of the stacked vectors, in the shapes of `like`."""
        row = self.names.index(name)
        found: Vector = []
        for rows, chunk in zip(self._rows, self._chunks, strict=True):
            parts = rows[row].split([part.numel() for part in like[chunk]])
            found += [one.view(part.shape) for one, part in zip(parts, like[chunk], strict=True)]
        return found
