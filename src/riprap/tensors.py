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


class Stack:
    """Several vectors side by side, so that one pass gives the inner products with all of them.

    Args:
        vectors: by name, all over the same parameters. Each parameter's parts are stacked where
            they live, which costs one copy of each vector.
    """

    def __init__(self, vectors: dict[str, Vector]) -> None:
        self.names = list(vectors)
        self._rows = [
            torch.stack([_wide(part).reshape(-1) for part in parts])
            for parts in zip(*vectors.values(), strict=True)
        ]
        self.norms = {name: float(norm(vector)) for name, vector in vectors.items()}

    def dots(self, vector: Sequence[Tensor]) -> dict[str, float]:
        """⟨vector, other⟩ for each of the stacked vectors, by name."""
        if not self.names:
            return {}
        home = self._rows[0].device
        products = [
            torch.mv(rows, _wide(part).reshape(-1)).to(home)
            for rows, part in zip(self._rows, vector, strict=True)
        ]
        totals = torch.stack(products).sum(0).tolist()
        return dict(zip(self.names, totals, strict=True))

    def vector(self, name: str, like: Sequence[Tensor]) -> Vector:
        """One of the stacked vectors, in the shapes of `like`."""
        row = self.names.index(name)
        return [rows[row].view(part.shape) for rows, part in zip(self._rows, like, strict=True)]
