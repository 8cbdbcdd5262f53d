"""Per-sample gradients of one parameter, as the factors that they are made of.

A linear layer's gradient for sample i is Σ_t g_it a_itᵀ. Its norm needs no weight-sized tensor:
‖·‖² = Σ_{t,t'} (a_it·a_it')(g_it·g_it') (the "ghost norm"; Goodfellow, 1510.01799; Li et al.,
2110.05679), whichever of the two is cheaper by shape. Several pieces of one parameter (a weight
used twice, a head tied to the embedding) have cross terms, by the same formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from riprap.linalg import widened

CHUNK = 2**25  # elements of per-sample gradients that are made at a time where only norms are kept


@dataclass
class Outer:
    """Σ_t g_it a_itᵀ of a linear layer.

    Attributes:
        left: g, shape (batch, T, outputs).
        right: a, shape (batch, T, inputs).
        transposed: whether the weight is (inputs, outputs).
    """

    left: Tensor
    right: Tensor
    transposed: bool = False

    def dense(self, into: Tensor | None = None) -> Tensor:
        """The gradients themselves, shape (batch, *weight); written into a tensor of that shape."""
        first, second = (self.right, self.left) if self.transposed else (self.left, self.right)
        if into is not None and into.dtype == first.dtype:
            return torch.bmm(first.transpose(1, 2), second, out=into)
        return torch.bmm(first.transpose(1, 2), second)

    def along(self, direction: Tensor) -> Tensor:
        """Inner products with a weight-shaped direction, shape (batch,)."""
        matrix = direction if self.transposed else direction.T
        return (widened(self.right @ matrix.to(self.right.dtype)) * self.left).sum((1, 2))

    def square(self) -> Tensor:
        """Squared norms, shape (batch,)."""
        length, outputs, inputs = self.left.shape[1], self.left.shape[2], self.right.shape[2]
        if length * (outputs + inputs) < outputs * inputs:
            return inner(self, self)
        at_once = max(1, CHUNK // (outputs * inputs))
        parts = zip(self.left.split(at_once), self.right.split(at_once), strict=True)
        return torch.cat([_squares(torch.bmm(g.transpose(1, 2), a)) for g, a in parts])


@dataclass
class Lookup:
    """Σ_t onehot(id_it) g_itᵀ of an embedding.

    Attributes:
        left: g, shape (batch, T, width), zero where nothing is learned (padding).
        ids: shape (batch, T).
        rows: how many the table has.
    """

    left: Tensor
    ids: Tensor
    rows: int

    def dense(self) -> Tensor:
        """The gradients themselves, shape (batch, rows, width)."""
        batch, _, width = self.left.shape
        table = self.left.new_zeros(batch, self.rows, width)
        return table.scatter_add_(1, self.ids[..., None].expand_as(self.left), self.left)

    def along(self, direction: Tensor) -> Tensor:
        """Inner products with a table-shaped direction, shape (batch,)."""
        return (widened(self.left) * direction[self.ids]).sum((1, 2))

    def square(self) -> Tensor:
        """Squared norms, shape (batch,)."""
        return inner(self, self)


@dataclass
class Dense:
    """Gradients that are small enough to be there: biases, norms.

    Attributes:
        values: shape (batch, *parameter).
    """

    values: Tensor

    def dense(self) -> Tensor:
        """The gradients themselves."""
        return self.values

    def along(self, direction: Tensor) -> Tensor:
        """Inner products with a direction, shape (batch,)."""
        return (widened(self.values) * direction).flatten(1).sum(1)

    def square(self) -> Tensor:
        """Squared norms, shape (batch,)."""
        return _squares(self.values)


Piece = Outer | Lookup | Dense


def square(pieces: Sequence[Piece]) -> Tensor:
    """Squared norms of the sum of one parameter's pieces, shape (batch,)."""
    total = torch.stack([piece.square() for piece in pieces]).sum(0)
    for at, piece in enumerate(pieces):
        for other in pieces[at + 1 :]:
            total = total + 2 * inner(piece, other)
    return total


def inner(one: Piece, other: Piece) -> Tensor:
    """Inner products sample by sample of two pieces of one parameter, shape (batch,)."""
    if isinstance(one, Dense) or isinstance(other, Dense):
        return (widened(one.dense()) * other.dense()).flatten(1).sum(1)
    if isinstance(one, Lookup) and isinstance(other, Lookup):
        same = one.ids[:, :, None] == other.ids[:, None, :]
        return (_gram(one.left, other.left) * same).sum((1, 2))
    if isinstance(one, Outer) and isinstance(other, Outer):
        first, second = _sides(one), _sides(other)
        return (_gram(first[0], second[0]) * _gram(first[1], second[1])).sum((1, 2))
    outer, lookup = (one, other) if isinstance(one, Outer) else (other, one)
    assert isinstance(outer, Outer) and isinstance(lookup, Lookup)
    table, width = _sides(outer)  # a row of the table is an output of the head that shares it
    places = lookup.ids[:, None, :].expand(-1, table.shape[1], -1)
    return (widened(table.gather(2, places)) * _gram(width, lookup.left)).sum((1, 2))


def _sides(outer: Outer) -> tuple[Tensor, Tensor]:
    """The factors in the order of the weight's dimensions."""
    return (outer.right, outer.left) if outer.transposed else (outer.left, outer.right)


def _gram(one: Tensor, other: Tensor) -> Tensor:
    return widened(torch.bmm(one, other.transpose(1, 2).to(one.dtype)))


def _squares(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(widened(values).flatten(1), dim=1).square()
