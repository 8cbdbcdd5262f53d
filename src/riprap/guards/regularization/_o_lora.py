"""O-LoRA: make a new adapter read other input directions than earlier adapters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from riprap._distributed import has_sharded_parameters
from riprap.guards._base import GuardView
from riprap.guards.regularization._penalty import Penalty
from riprap.linalg import Vector


@dataclass
class OLoRA(Penalty):
    """Penalty λ Σ_i ‖A_i Aᵀ‖²_F over earlier adapters i and over layers; A has shape (r, d_in).

    The rows of A span the input directions that the adapter reads. Only A gets a gradient,
    2 A A_iᵀ A_i in closed form: no pass through the model, and no extra copy of it.

    Args:
        earlier: for each earlier adapter, its A matrices, shape (r_i, d_in), by the name of the
            trained parameter they correspond to: as in the file that PEFT saves (the adapter's name
            is ignored, and so are entries of B), or as in `model.named_parameters()` for another
            LoRA implementation. None: the frozen adapters of the PEFT model.

    Source: Wang et al., 2310.14152, with the paper's squares and λ = 0.5. Faithful.

    Raises:
        ConfigError: in `start`, there is no trained A or no earlier one, a name or shape does not
            match, or the model is sharded over ranks.
    """

    strength: float = 0.5
    earlier: Sequence[Mapping[str, Tensor]] | None = None
    pairs: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    name: ClassVar[str] = "o_lora"
    goal: ClassVar[str] = "directions that earlier adapters do not use"
    per_parameter: ClassVar[bool] = True
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "2310.14152"
    fidelity: ClassVar[str] = "faithful"

    def start(self, view: GuardView) -> None:
        """Match earlier A matrices with trained parameters."""
        super().start(view)
        if has_sharded_parameters(view.model):
            raise self._error("a model sharded over ranks is not supported")
        trained = {id(parameter): at for at, parameter in enumerate(view.parameters)}
        if self.earlier is None:
            matrices = _frozen_adapters(view.model, trained)
        else:
            matrices = self._match_earlier(view.model, trained, self.earlier)
        if not matrices:
            raise self._error(
                "no earlier adapter was found beside a trained one; give a LoRA model with "
                "earlier=..., or load an earlier adapter and freeze it"
            )
        self.pairs = {at: torch.cat(list(parts)) for at, parts in matrices.items()}

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Compute Σ ‖A_i Aᵀ‖² and 2 A A_iᵀ A_i."""
        gradient = [torch.zeros_like(parameter) for parameter in view.parameters]
        value = torch.zeros((), device=gradient[0].device)
        for at, earlier in self.pairs.items():
            matrix = view.parameters[at].detach()
            overlap = matrix @ earlier.T.to(matrix)
            value = value + overlap.float().square().sum().to(value.device)
            gradient[at] = 2 * overlap @ earlier.to(matrix)
        return float(value), gradient

    def _match_earlier(
        self, model: nn.Module, trained: Mapping[int, int], earlier: Sequence[Mapping[str, Tensor]]
    ) -> dict[int, list[Tensor]]:
        """Return the given A matrices by the index of the trained parameter."""
        by_name = {
            without_adapter_name(name): (trained[id(parameter)], parameter)
            for name, parameter in model.named_parameters()
            if id(parameter) in trained
        }
        matrices: dict[int, list[Tensor]] = {}
        for adapter in earlier:
            for name, matrix in adapter.items():
                if "lora_B" in name:
                    continue
                at, parameter = by_name.get(without_adapter_name(name), (-1, None))
                if parameter is None:
                    raise self._error(
                        f"earlier A {name!r} names no trained parameter; trained are "
                        f"{', '.join(list(by_name)[:3])}, ..."
                    )
                if matrix.dim() != 2 or matrix.shape[1:] != parameter.shape[1:]:
                    raise self._error(
                        f"earlier A {name!r} has shape {tuple(matrix.shape)}, the trained one "
                        f"{tuple(parameter.shape)}; both need the same number of columns"
                    )
                matrices.setdefault(at, []).append(matrix.detach().to(parameter))
        return matrices


def without_adapter_name(name: str) -> str:
    """Return a parameter's name without its adapter's, as in "x.lora_A.default.weight"."""
    return re.sub(r"\.lora_A\.(?:[^.]+\.)?weight$", ".lora_A.weight", name)


def _frozen_adapters(model: nn.Module, trained: Mapping[int, int]) -> dict[int, list[Tensor]]:
    """Return the A matrices of a PEFT model's frozen adapters by the index of the trained one."""
    matrices: dict[int, list[Tensor]] = {}
    for module in model.modules():
        adapters = getattr(module, "lora_A", None)
        if not isinstance(adapters, nn.ModuleDict):
            continue
        weights = [adapter.get_parameter("weight") for adapter in adapters.values()]
        frozen = [weight.detach().clone() for weight in weights if id(weight) not in trained]
        for weight in weights:
            if id(weight) in trained and frozen:
                matrices[trained[id(weight)]] = frozen
    return matrices
