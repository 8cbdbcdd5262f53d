"""OGD: make the step orthogonal to the initial gradients of the protected outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from riprap._distributed import has_sharded_parameters
from riprap.guards._base import BehaviorGuard, GuardView, Proposal
from riprap.linalg import FlatVector, Vector, make_chunks, row_products

DIRECTIONS = 48  # stored gradients, unless there are more behaviors
MIN_NEW_PART = 1e-4  # minimum share of a gradient outside the span that makes it a new direction


@dataclass
class OGD(BehaviorGuard):
    """g ← g − Σ ⟨g, u_i⟩ u_i, with u_i an orthonormal basis of the probes' ∇m_i(θ₀).

    Source: Farajtabar et al., 1910.07104, algorithm 1. Simplified: the stored gradients are those
    of the margins (the paper's OGD-GTL: of the true class's logit), at θ₀ only, for some of the
    probes. The guard acts at every step, with or without a conflict. No parameter may be sharded
    over ranks.

    Args:
        behaviors: behaviors to protect, as objects or names; None: all monitored ones.
        directions: maximum number of stored gradients, in equal shares for the behaviors; None: 48,
            or one a behavior if there are more. Each costs a backward pass at the start and a
            float32 copy of the trained parameters.

    Raises:
        ConfigError: `directions` is less than 1; in `start`, there are more behaviors than
            `directions`, a margin has no gradient, or parameters are sharded over ranks.
    """

    directions: int | None = None
    basis: list[Tensor] = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "ogd"
    per_parameter: ClassVar[bool] = True
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "1910.07104"
    fidelity: ClassVar[str] = "simplified"
    state_attrs: ClassVar[tuple[str, ...]] = ("basis",)

    def __post_init__(self) -> None:
        if self.directions is not None and self.directions < 1:
            raise self._error(f"directions={self.directions}; it must be at least 1")

    def start(self, view: GuardView) -> None:
        """Compute the basis at θ₀."""
        behaviors = self.select_behaviors(view)
        if has_sharded_parameters(view.model):
            raise self._error(
                "the model's parameters are sharded over ranks, where per-probe gradients are not "
                "available; use AGEM, GEM or UpdateProjection"
            )
        count = max(DIRECTIONS, len(behaviors)) if self.directions is None else self.directions
        if count < len(behaviors):
            raise self._error(
                f"directions={count} for {len(behaviors)} behaviors would leave the last without "
                "any; give at least one a behavior"
            )
        kept = self.finite_probe_gradients(view, count // len(behaviors), "margin")
        self.basis = orthonormal_basis(kept, view.parameters)
        self.warn_of_unprotected(view, [torch.stack(parts) for parts in zip(*kept, strict=True)])

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Remove the component of the gradient in the span of the basis."""
        step = FlatVector(view.vector, make_chunks(view.parameters))
        pairs = zip(self.basis, step.parts, strict=True)
        self.basis = [rows.to(part.device) for rows, part in pairs]  # after a resume
        products = _basis_products(self.basis, step.parts)
        remainder = _subtract_span(self.basis, products, step.parts)
        vector: Vector = []
        for part, chunk in zip(remainder, step.chunks, strict=True):
            like = view.vector[chunk]
            pieces = zip(part.split([old.numel() for old in like]), like, strict=True)
            vector += [piece.view(old.shape).to(old.dtype) for piece, old in pieces]
        before = {"norm": step.norm(), "along": float(torch.linalg.vector_norm(products))}
        share = before["along"] / before["norm"] if before["norm"] > 0 else 0.0
        what = f"its part along {len(products)} protected directions"
        detail = f"removed {share:.0%} of the gradient's length: {what}"
        return Proposal(vector, detail, before, {"along": 0.0})


def orthonormal_basis(vectors: Iterable[Vector], like: Sequence[Tensor]) -> list[Tensor]:
    """Return an orthonormal basis of the span of `vectors`, by repeated Gram-Schmidt.

    It is one matrix, shape (k, elements), in at least float32, for each chunk of `like`, the
    parameters.
    """
    vectors, chunks = list(vectors), make_chunks(like)
    sizes = [sum(part.numel() for part in like[chunk]) for chunk in chunks]
    parts = FlatVector(vectors[0], chunks).parts
    rows = [part.new_empty(len(vectors), size) for part, size in zip(parts, sizes, strict=True)]
    count = 0
    for vector in vectors:
        flat = FlatVector(vector, chunks)
        whole, parts = flat.norm(), flat.parts
        basis = [matrix[:count] for matrix in rows]
        for _ in range(2):
            parts = _subtract_span(basis, _basis_products(basis, parts), parts)
        squares = [part.square().sum().to(rows[0].device) for part in parts]
        length = float(torch.stack(squares).sum()) ** 0.5
        if length > MIN_NEW_PART * whole:
            for matrix, part in zip(rows, parts, strict=True):
                matrix[count] = part / length
            count += 1
    return [matrix[:count].clone() for matrix in rows]


def _basis_products(basis: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """Return ⟨u_i, vector⟩, shape (k,), on the first chunk's device."""
    device = basis[0].device
    products = [
        row_products(rows, part).to(device) for rows, part in zip(basis, parts, strict=True)
    ]
    return torch.stack(products).sum(0)


def _subtract_span(
    basis: Sequence[Tensor], products: Tensor, parts: Sequence[Tensor]
) -> list[Tensor]:
    """Return the chunks minus Σ products_i u_i, as new tensors."""
    return [
        torch.addmv(part, rows.T, products.to(rows), alpha=-1)
        for rows, part in zip(basis, parts, strict=True)
    ]
