"""GPM: project each layer's gradient away from the span of its protected inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from riprap import evaluation
from riprap.behaviors import Behavior
from riprap.errors import BehaviorError
from riprap.evaluation import LayerMoments, LinearLayer
from riprap.guards._base import BehaviorGuard, GuardView, Proposal, is_finite
from riprap.linalg import as_sharded, is_sharded, norm, to_float64, to_local, upcast


@dataclass
class GPM(BehaviorGuard):
    """∇W ← ∇W − ∇W U Uᵀ for each trained linear layer, U spanning its protected inputs at θ₀.

    U has the fewest directions that hold `energy` of the inputs' squared length, over all token
    positions except padding. Behaviors are processed in order; each adds the directions that are
    still missing. W x is then unchanged for x in U, to any order, if the optimizer stays in the
    gradient's directions (SGD and momentum do; Adam and weight decay do not).

    Covered are `torch.nn.Linear` and transformers' `Conv1D` with a trained weight, including a
    LoRA's A; a head that shares its weight with the embedding is covered as a head. Not covered
    are biases, embeddings, norms, layers that the probes do not run, and a LoRA's B: it has so few
    inputs that they fill its input space, and it could not learn. If parameters are sharded over
    ranks, each rank projects its own rows and records their norms.

    Source: Saha et al., 2103.09762, eq. 4–9. Variant: a share of each layer stays free (`free`),
    behaviors take the place of tasks, and biases are not covered. With `free=0`, as in eq. 5, U
    holds at least `energy`; the authors' code stops one direction short of it at the first task.

    Args:
        behaviors: behaviors to protect, as objects or names; None: all monitored ones.
        energy: share of the squared length of the inputs that U holds.
        free: least share of a layer's weight that stays free, even if U then holds less; 0: none,
            as in the paper. A layer without a free direction does not learn.

    Raises:
        ConfigError: energy does not lie in (0, 1]; in `start`, no trained weight is covered, or a
            weight is sharded along its inputs.
    """

    energy: float = 0.97
    free: float = 0.75
    input_bases: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    error_bases: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    layers: dict[int, LinearLayer] = field(default_factory=dict, init=False, repr=False)

    name: ClassVar[str] = "gpm"
    sides: ClassVar[int] = 1  # from which the gradient is projected
    per_parameter: ClassVar[bool] = True
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "2103.09762"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = ("input_bases",)

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise self._error(f"energy={self.energy}; it must lie in (0, 1]")
        if not 0 <= self.free < 1:
            raise self._error(f"free={self.free}; it must lie in [0, 1)")

    def start(self, view: GuardView) -> None:
        """Compute the bases of each layer."""
        behaviors = self.select_behaviors(view)
        layers = evaluation.linear_layers(view.model, view.parameters)
        self.layers = {at: layer for at, layer in layers.items() if not layer.expands_adapter}
        for at, layer in self.layers.items():
            self._check_shards(layer, view.parameters[at])
        self.input_bases, self.error_bases = {}, {}
        sick = []
        for number, behavior in enumerate(behaviors, 1):
            moments = self._moments(behavior, view.model)
            if not all(map(is_finite, (moments.inputs.values(), moments.errors.values()))):
                sick.append(behavior.name)
                continue
            # An equal part of what may be held for each, so that the last has one too.
            limit = (1 - self.free ** (1 / self.sides)) * number / len(behaviors)
            self.input_bases = extend_bases(self.input_bases, moments.inputs, self.energy, limit)
            self.error_bases = extend_bases(self.error_bases, moments.errors, self.energy, limit)
        self.leave_out(sick, "an input of a layer")
        if not self.input_bases:
            raise self._error(
                "the probes run no linear layer with a trained weight; it covers torch.nn.Linear, "
                "transformers' Conv1D and a LoRA's A, not embeddings, norms or biases"
            )

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Remove the protected directions from the covered gradients."""
        vector = [to_local(part) for part in view.vector]
        for at in self.input_bases:
            vector[at] = self._project(at, vector[at])
        vector = as_sharded(vector, view.vector)
        before, after = (
            {"norm": float(norm([parts[at] for at in self.input_bases]))}
            for parts in (view.vector, vector)
        )
        full = sum(basis.shape[1] == basis.shape[0] for basis in self.input_bases.values())
        stopped = f"; {full} of them have no free direction and do not learn" if full else ""
        share = 1 - after["norm"] / before["norm"] if before["norm"] > 0 else 0.0
        where = f"{len(self.input_bases)} weights, along protected inputs{stopped}"
        detail = f"removed {share:.0%} of the gradient's length in {where}"
        return Proposal(vector, detail, before, after)

    def _moments(self, behavior: Behavior, model: nn.Module) -> LayerMoments:
        return evaluation.layer_moments(behavior, model, self.layers)

    def _project(self, at: int, gradient: Tensor) -> Tensor:
        transposed = self.layers[at].transposed
        projected = remove_span(upcast(gradient), self.input_bases[at], transposed)
        if at in self.error_bases:
            projected = remove_span(projected, self.error_bases[at], not transposed)
        return projected.to(gradient.dtype)

    def _check_shards(self, layer: LinearLayer, weight: Tensor) -> None:
        if not is_sharded(weight):
            return
        assert isinstance(weight, DTensor)
        dims = {place.dim for place in weight.placements if isinstance(place, Shard)}
        if layer.transposed or dims != {0}:
            raise self._error(
                f"the weight of {layer.name} is sharded over ranks along its inputs; only shards "
                "of whole rows (dimension 0 of a Linear, as in FSDP2) work"
            )


@dataclass
class TwoSidedGPM(GPM):
    """∇W ← (I − V Vᵀ) ∇W (I − U Uᵀ), V spanning the gradients of the margins at the layer's output.

    V holds `energy` of the squared length of ∂m_i/∂(output of the layer), over probes and
    positions; U is that of GPM. For a LoRA's A this gradient is 0 while B is 0, and V is empty.

    Ours: a variant of GPM after the idea of 2510.09181, whose text was not available. No covered
    weight may be sharded over ranks.
    """

    name: ClassVar[str] = "two_sided_gpm"
    sides: ClassVar[int] = 2
    field_of_origin: ClassVar[str] = "ours"
    source: ClassVar[str] = "ours, after 2510.09181"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = ("input_bases", "error_bases")

    def _moments(self, behavior: Behavior, model: nn.Module) -> LayerMoments:
        try:
            return evaluation.layer_moments(behavior, model, self.layers, True)
        except BehaviorError as error:
            raise self._error(str(error)) from error

    def _check_shards(self, layer: LinearLayer, weight: Tensor) -> None:
        if is_sharded(weight):
            raise self._error(
                f"the weight of {layer.name} is sharded over ranks, and the left-hand projection "
                "needs all rows; use GPM"
            )


def remove_span(gradient: Tensor, basis: Tensor, left: bool) -> Tensor:
    """Return G − G B Bᵀ, or G − B Bᵀ G from the left; the columns of B are orthonormal."""
    basis = basis.to(gradient)
    if left:
        return gradient - basis @ (basis.T @ gradient)
    return gradient - (gradient @ basis) @ basis.T


def extend_bases(
    bases: dict[int, Tensor], moments: dict[int, Tensor], energy: float, limit: float = 1.0
) -> dict[int, Tensor]:
    """Extend each basis to hold the energy of its moment too; see `extend_basis`."""
    extended = {
        at: extend_basis(bases.get(at, moment.new_zeros(len(moment), 0)), moment, energy, limit)
        for at, moment in moments.items()
    }
    return {at: basis for at, basis in (bases | extended).items() if basis.shape[1]}


def extend_basis(basis: Tensor, moment: Tensor, energy: float, limit: float = 1.0) -> Tensor:
    """Add the fewest directions for a basis to hold a share of Σ ‖x‖²; 2103.09762, eq. 8 and 9.

    Args:
        basis: orthonormal columns, shape (d, k); the result starts with them.
        moment: Σ x xᵀ over the vectors x, shape (d, d).
        limit: largest share of the d directions that the result may hold, whatever the energy.
    """
    whole = moment.trace()
    outside = moment - basis @ (basis.T @ moment)
    outside = outside - (outside @ basis) @ basis.T
    # In float64: in float32 LAPACK may fail to converge where eigenvalues repeat.
    values, axes = (part.to(outside.dtype) for part in torch.linalg.eigh(to_float64(outside)))
    values, axes = values.flip(0).clamp_min(0), axes.flip(1)
    missing = float(energy * whole - (whole - outside.trace()))
    if not missing > 1e-6 * float(whole):
        return basis
    count = int((values.cumsum(0) < missing * (1 - 1e-6)).sum()) + 1
    # Directions outside the basis have eigenvalues above 0; those inside have 0, up to rounding.
    most = max(round(limit * len(values)), basis.shape[1])
    added = axes[:, : min(count, most - basis.shape[1])]
    return torch.cat([basis, added], 1)
