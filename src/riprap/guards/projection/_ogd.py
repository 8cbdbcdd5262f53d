"""OGD: the step stays orthogonal to how the protected outputs depended on the weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from riprap import evaluation as probing
from riprap._distributed import has_sharded_parameters
from riprap.behaviors import Behavior
from riprap.errors import ConfigError
from riprap.guards._base import Guard, GuardView, Proposal, behavior_names
from riprap.linalg import FlatVector, Vector, make_chunks

MIN_NEW_PART = 1e-4  # least part of a gradient outside of the span for it to count as a direction


@dataclass
class OGD(Guard):
    """g ← g − Σ ⟨g, u_i⟩ u_i, with u_i an orthonormal basis of the probes' ∇m_i(θ₀).

    Source: Farajtabar et al., 1910.07104, algorithm 1. Simplified: of the model's outputs the
    margin's gradient is stored (the paper's OGD-GTL: that of the true class's logit), at θ₀ only,
    for some of the probes. It acts at every step, in conflict or not. No parameter may be sharded
    over ranks.

    Args:
        behaviors: what to protect, by behaviour or by name; None: all that are watched.
        directions: how many gradients are stored at most, the same share of each behaviour. Each
            takes a backward pass at the start, and a copy of the trained parameters in float32.

    Raises:
        ConfigError: there is to be no direction.
    """

    behaviors: Sequence[Behavior | str] | None = None
    directions: int = 48
    basis: list[Tensor] = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "ogd"
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "1910.07104"
    fidelity: ClassVar[str] = "simplified"
    state_attrs: ClassVar[tuple[str, ...]] = ("basis",)

    def __post_init__(self) -> None:
        if self.directions < 1:
            raise ConfigError(f"guard ogd: directions={self.directions}; store at least one")

    def start(self, view: GuardView) -> None:
        """Store the directions of θ₀.

        Raises:
            ConfigError: a margin has no gradient, or parameters are sharded over ranks.
        """
        names = behavior_names(self.name, self.behaviors, view.behaviors)
        if has_sharded_parameters(view.model):
            raise ConfigError(
                "guard ogd: the model's parameters are sharded over ranks, and a gradient for each "
                "probe cannot be taken there; take AGEM, GEM or UpdateProjection"
            )
        most = max(self.directions // len(names), 1)
        found: list[Vector] = []
        for name in names:
            rows = probing.margin_gradients(view.behaviors[name], view.model, view.parameters, most)
            if rows is None:
                raise ConfigError(
                    f"guard ogd: behaviour {name!r} has no protected gradient; give it a margin "
                    "attached to the graph"
                )
            found += rows
        self.basis = orthonormal_basis(found[: self.directions], view.parameters)

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Take out what lies in the span."""
        joined = FlatVector(view.vector, make_chunks(view.parameters))
        size = joined.norm()
        pairs = zip(self.basis, joined.parts, strict=True)
        self.basis = [rows.to(part.device) for rows, part in pairs]  # a state comes from elsewhere
        along = _basis_products(self.basis, joined.parts)
        left = _subtract_span(self.basis, along, joined.parts)
        vector: Vector = []
        for part, run in zip(left, joined.chunks, strict=True):
            own = view.vector[run]
            pieces = part.split([one.numel() for one in own])
            vector += [
                piece.view(one.shape).to(one.dtype) for piece, one in zip(pieces, own, strict=True)
            ]
        removed = float(torch.linalg.vector_norm(along))
        detail = f"orthogonal to {len(along)} stored directions"
        return Proposal(vector, detail, {"norm": size, "along": removed}, {"along": 0.0})


def orthonormal_basis(vectors: Iterable[Vector], like: Sequence[Tensor]) -> list[Tensor]:
    """An orthonormal basis of the span of `vectors`, by Gram and Schmidt, each taken twice.

    Args:
        like: the parameters; the basis is cut as `riprap.linalg._vector_stack.chunks` cuts them.

    Returns:
        a matrix a chunk, of shape (k, elements of the chunk), in at least float32.
    """
    vectors, runs = list(vectors), make_chunks(like)
    sizes = [sum(part.numel() for part in like[run]) for run in runs]
    parts = FlatVector(vectors[0], runs).parts
    rows = [part.new_empty(len(vectors), size) for part, size in zip(parts, sizes, strict=True)]
    count = 0
    for vector in vectors:
        joined = FlatVector(vector, runs)
        whole, parts = joined.norm(), joined.parts
        basis = [matrix[:count] for matrix in rows]
        for _ in range(2):
            parts = _subtract_span(basis, _basis_products(basis, parts), parts)
        length = float(
            torch.stack([part.square().sum().to(rows[0].device) for part in parts]).sum()
        )
        if length**0.5 > MIN_NEW_PART * whole:
            for matrix, part in zip(rows, parts, strict=True):
                matrix[count] = part / length**0.5
            count += 1
    return [matrix[:count].clone() for matrix in rows]


def _basis_products(basis: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """⟨u_i, vector⟩, shape (k,), on the first chunk's device."""
    home = basis[0].device
    products = [torch.mv(rows, part).to(home) for rows, part in zip(basis, parts, strict=True)]
    return torch.stack(products).sum(0)


def _subtract_span(basis: Sequence[Tensor], along: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """The chunks less Σ along_i u_i, as new tensors."""
    return [
        torch.addmv(part, rows.T, along.to(rows.device), alpha=-1)
        for rows, part in zip(basis, parts, strict=True)
    ]
