"""Per-sample gradients of one parameter, in factored form.

The gradient of a linear layer for sample i is Σ_t g_it a_itᵀ, with a the activations and g the
backprops (gradients in the layer's output). Its norm needs no weight-sized tensor:
‖·‖² = Σ_{t,t'} (a_it·a_it')(g_it·g_it') (the "ghost norm"; Goodfellow, 1510.01799; Li et al.,
2110.05679). The cheaper of the two ways is taken, by shape. Several factors of one parameter (a
weight used twice, a head tied to the embedding) have cross terms, by the same formula.

The gradient of some samples together is one matrix product over the positions of these samples. So
a factor can be kept as it is, or as dense gradients, whichever is smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from riprap.linalg import row_squares, upcast

MAX_CHUNK_ELEMENTS = 2**25  # of per-sample gradients that are computed together for their norms


@dataclass
class OuterProductGrad:
    """Gradient Σ_t g_it a_itᵀ of a linear layer."""

    backprops: Tensor  # g, shape (batch, T, outputs)
    activations: Tensor  # a, shape (batch, T, inputs)
    transposed: bool = False  # the weight has shape (inputs, outputs)

    @property
    def by_weight_dims(self) -> tuple[Tensor, Tensor]:
        """The two factors in the order of the weight's dimensions."""
        if self.transposed:
            return self.activations, self.backprops
        return self.backprops, self.activations

    @property
    def row_elements(self) -> tuple[int, int]:
        """Elements of a sample's factor, and of its dense gradient."""
        length, outputs = self.backprops.shape[1:]
        inputs = self.activations.shape[2]
        return length * (outputs + inputs), outputs * inputs

    def materialize(self) -> Tensor:
        """Compute the gradients, shape (batch, *weight)."""
        first, second = self.by_weight_dims
        return torch.bmm(first.transpose(1, 2), second)

    def sum(self, rows: list[int]) -> Tensor:
        """Compute the sum of some samples' gradients, of the weight's shape."""
        first, second = self.by_weight_dims
        if len(rows) < len(first):
            first, second = first[rows], second[rows]
        return first.flatten(0, 1).T @ second.flatten(0, 1)

    def dot(self, direction: Tensor) -> Tensor:
        """Compute dot products with a weight-shaped direction, shape (batch,)."""
        matrix = direction if self.transposed else direction.T
        projected = upcast(self.activations @ matrix.to(self.activations.dtype))
        return (projected * self.backprops).sum((1, 2))

    def squared_norm(self) -> Tensor:
        """Compute squared norms, shape (batch,)."""
        in_factor, in_gradient = self.row_elements
        if in_factor < in_gradient:
            return inner_product(self, self)
        chunk = max(1, MAX_CHUNK_ELEMENTS // in_gradient)
        parts = zip(self.backprops.split(chunk), self.activations.split(chunk), strict=True)
        return torch.cat([row_squares(torch.bmm(g.transpose(1, 2), a)) for g, a in parts])


@dataclass
class EmbeddingGrad:
    """Gradient Σ_t onehot(id_it) g_itᵀ of an embedding."""

    backprops: Tensor  # g, shape (batch, T, width), zero for padding
    ids: Tensor  # shape (batch, T)
    n_embeddings: int

    def materialize(self) -> Tensor:
        """Compute the gradients, shape (batch, n_embeddings, width)."""
        batch, _, width = self.backprops.shape
        table = self.backprops.new_zeros(batch, self.n_embeddings, width)
        return table.scatter_add_(1, self.ids[..., None].expand_as(self.backprops), self.backprops)

    @property
    def row_elements(self) -> tuple[int, int]:
        """Elements of a sample's factor, and of its dense gradient."""
        _, length, width = self.backprops.shape
        return length * (width + 1), self.n_embeddings * width

    def sum(self, rows: list[int]) -> Tensor:
        """Compute the sum of some samples' gradients, of the weight's shape."""
        ids, grads = self.ids[rows].flatten(), self.backprops[rows].flatten(0, 1)
        return grads.new_zeros(self.n_embeddings, grads.shape[1]).index_add_(0, ids, grads)

    def dot(self, direction: Tensor) -> Tensor:
        """Compute dot products with a direction of the weight's shape, shape (batch,)."""
        return (upcast(self.backprops) * direction[self.ids]).sum((1, 2))

    def squared_norm(self) -> Tensor:
        """Compute squared norms, shape (batch,)."""
        return inner_product(self, self)


@dataclass
class DenseGrad:
    """Gradients small enough to be stored, of biases and norms: shape (batch, *parameter)."""

    values: Tensor

    def materialize(self) -> Tensor:
        """Return the gradients."""
        return self.values

    def sum(self, rows: list[int]) -> Tensor:
        """Compute the sum of some samples' gradients, of the parameter's shape."""
        return (self.values[rows] if len(rows) < len(self.values) else self.values).sum(0)

    def dot(self, direction: Tensor) -> Tensor:
        """Compute dot products with a direction, shape (batch,)."""
        return (upcast(self.values) * direction).flatten(1).sum(1)

    def squared_norm(self) -> Tensor:
        """Compute squared norms, shape (batch,)."""
        return row_squares(self.values)


GradFactor = OuterProductGrad | EmbeddingGrad | DenseGrad


def smaller_form(factor: GradFactor) -> GradFactor:
    """Return the factor, or dense gradients if these are smaller."""
    if isinstance(factor, DenseGrad):
        return factor
    in_factor, in_gradient = factor.row_elements
    return factor if in_factor < in_gradient else DenseGrad(factor.materialize())


def add_factor(factors: list[GradFactor], factor: GradFactor) -> None:
    """Add one more factor of a parameter; dense gradients become one."""
    if isinstance(factor, DenseGrad):
        for index, other in enumerate(factors):
            if isinstance(other, DenseGrad):
                factors[index] = DenseGrad(other.values + factor.values)
                return
    factors.append(factor)


def select_samples(factor: GradFactor, rows: list[int]) -> GradFactor:
    """Return the factor of some samples."""
    if isinstance(factor, OuterProductGrad):
        return replace(
            factor, backprops=factor.backprops[rows], activations=factor.activations[rows]
        )
    if isinstance(factor, EmbeddingGrad):
        return replace(factor, backprops=factor.backprops[rows], ids=factor.ids[rows])
    return DenseGrad(factor.values[rows])


def squared_norm(factors: Sequence[GradFactor]) -> Tensor:
    """Compute squared norms of the sum of a parameter's factors, shape (batch,)."""
    total = torch.stack([factor.squared_norm() for factor in factors]).sum(0)
    for factor, other in combinations(factors, 2):
        total = total + 2 * inner_product(factor, other)
    return total


def inner_product(a: GradFactor, b: GradFactor) -> Tensor:
    """Compute inner products of two factors of one parameter, sample by sample, shape (batch,)."""
    if isinstance(a, DenseGrad) or isinstance(b, DenseGrad):
        return (upcast(a.materialize()) * b.materialize()).flatten(1).sum(1)
    if isinstance(a, EmbeddingGrad) and isinstance(b, EmbeddingGrad):
        same = a.ids[:, :, None] == b.ids[:, None, :]
        return (_gram(a.backprops, b.backprops) * same).sum((1, 2))
    if isinstance(a, OuterProductGrad) and isinstance(b, OuterProductGrad):
        (a_rows, a_columns), (b_rows, b_columns) = a.by_weight_dims, b.by_weight_dims
        return (_gram(a_rows, b_rows) * _gram(a_columns, b_columns)).sum((1, 2))
    outer, lookup = (a, b) if isinstance(a, OuterProductGrad) else (b, a)
    assert isinstance(outer, OuterProductGrad) and isinstance(lookup, EmbeddingGrad)
    by_token, by_width = outer.by_weight_dims  # a head whose weight is the embedding matrix
    index = lookup.ids[:, None, :].expand(-1, by_token.shape[1], -1)
    return (upcast(by_token.gather(2, index)) * _gram(by_width, lookup.backprops)).sum((1, 2))


def _gram(a: Tensor, b: Tensor) -> Tensor:
    return upcast(torch.bmm(a, b.transpose(1, 2).to(a.dtype)))
