"""GPM: weights are changed only where the protected inputs of their layer do not point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.errors import BehaviorError, ConfigError
from riprap.evaluation import LinearLayer
from riprap.guards._base import Guard, GuardView, Proposal, behavior_names
from riprap.linalg import is_sharded, to_local, norm, as_sharded


@dataclass
class GPM(Guard):
    """∇W ← ∇W − ∇W U Uᵀ for each trained linear layer, U spanning its protected inputs at θ₀.

    The fewest directions are kept that hold `energy` of the inputs' squared length, over all token
    positions, padding left out; behaviour by behaviour, each adding what those before it lack. Then
    W x stays as it is for x in U, to any order, if the optimizer keeps to the gradient's directions
    (SGD and momentum do; Adam and weight decay do not).

    Covered are `torch.nn.Linear` and transformers' `Conv1D` whose weight is trained, a LoRA's A
    among them; a head that shares its weight with the embedding is covered as a head. Left alone
    are biases, embeddings, norms, layers that the probes do not run, and a LoRA's B: it reads so
    few numbers that its inputs fill them, and it could not learn. Of parameters that are sharded
    over ranks each rank treats its own rows, and records their norms.

    Source: Saha et al., 2103.09762, eq. 4–9. Simplified: behaviours take the place of tasks, and
    biases are not covered.

    Args:
        behaviors: what to protect, by behaviour or by name; None: all that are watched.
        energy: share of the squared length of the inputs that U holds.

    Raises:
        ConfigError: energy does not lie in (0, 1].
    """

    behaviors: Sequence[Behavior | str] | None = None
    energy: float = 0.97
    input_bases: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    layers: dict[int, LinearLayer] = field(default_factory=dict, init=False, repr=False)

    name: ClassVar[str] = "gpm"
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "2103.09762"
    fidelity: ClassVar[str] = "simplified"
    state_attrs: ClassVar[tuple[str, ...]] = ("input_bases",)

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise ConfigError(f"guard {self.name}: energy={self.energy}; it must lie in (0, 1]")

    def start(self, view: GuardView) -> None:
        """Find U of each layer.

        Raises:
            ConfigError: no trained weight is covered, or one is sharded so that it cannot be.
        """
        names = behavior_names(self.name, self.behaviors, view.behaviors)
        found = probing.linear_layers(view.model, view.parameters)
        self.layers = {at: layer for at, layer in found.items() if not layer.expands_adapter}
        for at, layer in self.layers.items():
            self._check_shards(layer, view.parameters[at])
        self._compute_bases(view, names)
        if not self.input_bases:
            raise ConfigError(
                f"guard {self.name}: no trained weight of a linear layer is run by the probes; it "
                "covers torch.nn.Linear, transformers' Conv1D and a LoRA's A, not embeddings, "
                "norms or biases"
            )

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Take the protected directions out of the covered gradients."""
        vector = [to_local(part) for part in view.vector]
        covered = [view.vector[at] for at in self.input_bases]
        for at in self.input_bases:
            vector[at] = self._project(at, vector[at])
        vector = as_sharded(vector, view.vector)
        before = {"norm": float(norm(covered))}
        after = {"norm": float(norm([vector[at] for at in self.input_bases]))}
        full = sum(basis.shape[1] == basis.shape[0] for basis in self.input_bases.values())
        stopped = f", of which {full} have no direction left" if full else ""
        return Proposal(vector, f"{len(self.input_bases)} weights projected{stopped}", before, after)

    def _compute_bases(self, view: GuardView, names: Sequence[str]) -> None:
        self.input_bases = {}
        for name in names:
            seen = probing.layer_moments(view.behaviors[name], view.model, self.layers)
            self.input_bases = extend_bases(self.input_bases, seen.inputs, self.energy)

    def _project(self, at: int, gradient: Tensor) -> Tensor:
        own = remove_span(_wide(gradient), self.input_bases[at], self.layers[at].transposed)
        return own.to(gradient.dtype)

    def _check_shards(self, layer: LinearLayer, weight: Tensor) -> None:
        if not is_sharded(weight):
            return
        assert isinstance(weight, DTensor)
        split = {place.dim for place in weight.placements if isinstance(place, Shard)}
        if layer.transposed or split != {0}:
            raise ConfigError(
                f"guard {self.name}: the weight of {layer.name} is sharded over ranks along its "
                "inputs; only shards of whole rows (FSDP2's dimension 0 of a Linear) are covered"
            )


@dataclass
class TwoSidedGPM(GPM):
    """∇W ← (I − V Vᵀ) ∇W (I − U Uᵀ), V spanning the errors that margins send back to the layer.

    V holds `energy` of the squared length of ∂m_i/∂(output of the layer), over probes and
    positions; U is GPM's. Of a LoRA's A no error is seen while B is 0: V is empty then.

    Ours, after the idea of 2510.09181, whose text was not at hand: a variant of it and of GPM. No
    covered weight may be sharded over ranks.
    """

    error_bases: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    name: ClassVar[str] = "two_sided_gpm"
    field_of_origin: ClassVar[str] = "ours"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = ("input_bases", "error_bases")

    def _compute_bases(self, view: GuardView, names: Sequence[str]) -> None:
        self.input_bases, self.error_bases = {}, {}
        for name in names:
            try:
                seen = probing.layer_moments(view.behaviors[name], view.model, self.layers, True)
            except BehaviorError as error:
                raise ConfigError(f"guard {self.name}: {error}") from error
            self.input_bases = extend_bases(self.input_bases, seen.inputs, self.energy)
            self.error_bases = extend_bases(self.error_bases, seen.errors, self.energy)

    def _project(self, at: int, gradient: Tensor) -> Tensor:
        turned = self.layers[at].transposed
        left = remove_span(_wide(gradient), self.input_bases[at], turned)
        if at in self.error_bases:
            left = remove_span(left, self.error_bases[at], not turned)
        return left.to(gradient.dtype)

    def _check_shards(self, layer: LinearLayer, weight: Tensor) -> None:
        if is_sharded(weight):
            raise ConfigError(
                f"guard {self.name}: the weight of {layer.name} is sharded over ranks, and its "
                "left side needs all rows; take GPM"
            )


def remove_span(gradient: Tensor, basis: Tensor, left: bool) -> Tensor:
    """G − G B Bᵀ, or G − B Bᵀ G from the left.

    Args:
        gradient: shape (rows, columns).
        basis: orthonormal columns, shape (columns, k), or (rows, k) from the left.
    """
    basis = basis.to(gradient)
    if left:
        return gradient - basis @ (basis.T @ gradient)
    return gradient - (gradient @ basis) @ basis.T


def extend_bases(
    bases: dict[int, Tensor], moments: dict[int, Tensor], energy: float
) -> dict[int, Tensor]:
    """Bases that hold the energy of these moments too; see `widened`."""
    wider = {
        at: extend_basis(bases.get(at, moment.new_zeros(len(moment), 0)), moment, energy)
        for at, moment in moments.items()
    }
    return {at: basis for at, basis in (bases | wider).items() if basis.shape[1]}


def extend_basis(basis: Tensor, moment: Tensor, energy: float) -> Tensor:
    """The basis with the fewest directions added that make it hold the energy of what was seen.

    Args:
        basis: orthonormal columns, shape (d, k).
        moment: Σ x xᵀ over what was seen, shape (d, d).
        energy: share of Σ ‖x‖² to be held.

    Returns:
        shape (d, k or more), the given columns first; 2103.09762, eq. 8 and 9.
    """
    whole = moment.trace()
    outside = moment - basis @ (basis.T @ moment)
    outside = outside - (outside @ basis) @ basis.T
    values, axes = torch.linalg.eigh(outside)
    values, axes = values.flip(0).clamp_min(0), axes.flip(1)
    lacking = float(energy * whole - (whole - outside.trace()))
    if not lacking > 1e-6 * float(whole):
        return basis
    count = int((values.cumsum(0) < lacking * (1 - 1e-6)).sum()) + 1
    # A direction outside has a value above 0; eigh gives those inside 0, to within rounding.
    added = axes[:, : min(count, len(values) - basis.shape[1])]
    return torch.cat([basis, added], 1)


def _wide(gradient: Tensor) -> Tensor:
    return gradient.float() if gradient.dtype.itemsize < 4 else gradient
