"""O-LoRA: a new adapter learns in directions that earlier adapters do not use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from riprap._distributed import has_sharded_parameters
from riprap.errors import ConfigError
from riprap.guards._base import GuardView
from riprap.guards.regularization._penalty import Penalty
from riprap.linalg import Vector


@dataclass
class OLoRA(Penalty):
    """Adds λ Σ_i ‖A_i Aᵀ‖²_F over earlier adapters i and over layers; A of shape (r, d_in).

    The rows of A span what the adapter reads of a layer's input. Only A is pulled at; B follows.
    The gradient is written out, 2 A A_iᵀ A_i: no pass through the model, and no extra copy of it.

    Args:
        earlier: for each earlier adapter, its A matrices by the name of the parameter they stand in
            the way of, as in the file that PEFT saves (an adapter's own name is looked through, and
            entries of B are left out), or as in `model.named_parameters()` for LoRA of one's own;
            shape (r_i, d_in). None: the frozen adapters that the PEFT model holds.

    Source: Wang et al., 2310.14152, with the squares of its paper and λ = 0.5. Faithful.

    Raises (at the start):
        ConfigError: no trained A, no earlier one, a name or a shape that fits none, or a model
            sharded over ranks.
    """

    strength: float = 0.5
    earlier: Sequence[Mapping[str, Tensor]] | None = None
    pairs: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    name: ClassVar[str] = "o_lora"
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "2310.14152"
    fidelity: ClassVar[str] = "faithful"

    def start(self, view: GuardView) -> None:
        """Find which earlier A stands in the way of which parameter."""
        if has_sharded_parameters(view.model):
            raise ConfigError(f"guard {self.name}: a model sharded over ranks is not supported")
        trained = {id(parameter): at for at, parameter in enumerate(view.parameters)}
        if self.earlier is None:
            found = _frozen_adapters(view.model, trained)
        else:
            found = self._match_earlier(view.model, trained, self.earlier)
        if not found:
            raise ConfigError(
                f"guard {self.name}: no earlier adapter was found beside a trained one; it needs a "
                "model with LoRA and earlier=..., or an earlier adapter loaded and frozen"
            )
        self.pairs = {at: torch.cat(list(parts)) for at, parts in found.items()}

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Σ ‖A_i Aᵀ‖² and 2 A A_iᵀ A_i."""
        gradient = [torch.zeros_like(parameter) for parameter in view.parameters]
        value = torch.zeros((), device=gradient[0].device)
        for at, earlier in self.pairs.items():
            matrix = view.parameters[at].detach()
            overlap = matrix @ earlier.T.to(matrix)
            value = value + overlap.float().square().sum().to(value.device)
            gradient[at] = 2 * overlap @ earlier.to(matrix)
        return float(value), gradient

    def _match_earlier(
        self,
        model: nn.Module,
        trained: Mapping[int, int],
        earlier: Sequence[Mapping[str, Tensor]],
    ) -> dict[int, list[Tensor]]:
        own = {
            without_adapter_name(name): (trained[id(parameter)], parameter)
            for name, parameter in model.named_parameters()
            if id(parameter) in trained
        }
        found: dict[int, list[Tensor]] = {}
        for adapter in earlier:
            for name, matrix in adapter.items():
                if "lora_B" in name:
                    continue
                at, parameter = own.get(without_adapter_name(name), (-1, None))
                if parameter is None:
                    raise ConfigError(
                        f"guard {self.name}: earlier A {name!r} names no trained parameter; those "
                        f"are {', '.join(list(own)[:3])}, ..."
                    )
                if matrix.dim() != 2 or matrix.shape[1:] != parameter.shape[1:]:
                    raise ConfigError(
                        f"guard {self.name}: earlier A {name!r} has shape {tuple(matrix.shape)}, "
                        f"the trained one {tuple(parameter.shape)}; they must read equally many "
                        "inputs"
                    )
                found.setdefault(at, []).append(matrix.detach().to(parameter))
        return found


def without_adapter_name(name: str) -> str:
    """A parameter's name without its adapter's, as in "x.lora_A.default.weight"."""
    return re.sub(r"\.lora_A\.(?:[^.]+\.)?weight$", ".lora_A.weight", name)


def _frozen_adapters(model: nn.Module, trained: Mapping[int, int]) -> dict[int, list[Tensor]]:
    """A of the adapters in a PEFT model that are not trained, by the trained one beside them."""
    found: dict[int, list[Tensor]] = {}
    for module in model.modules():
        adapters = getattr(module, "lora_A", None)
        if not isinstance(adapters, nn.ModuleDict):
            continue
        weights = [adapter.get_parameter("weight") for adapter in adapters.values()]
        resting = [weight.detach().clone() for weight in weights if id(weight) not in trained]
        for weight in weights:
            if id(weight) in trained and resting:
                found[trained[id(weight)]] = resting
    return found
