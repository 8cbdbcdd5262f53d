"""Freeze: some parts of the model stay exactly as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from riprap.errors import BehaviorError, ConfigError
from riprap.evaluation import find_layer, layer_stacks
from riprap.guards._base import Guard, GuardView, Proposal
from riprap.linalg import Vector, norm


@dataclass
class Freeze(Guard):
    """The chosen parameters do not move, neither by weight decay nor by momentum.

    Their gradient is set to 0, so that norms and the optimizer's moments are of what is trained,
    and after the step they are put back bit for bit, since an optimizer moves what has no gradient,
    too. A tied weight is frozen wherever it is used. It saves no memory: to freeze for the whole
    run, `requires_grad_(False)` before the optimizer is made does; this is for a part of the run,
    and for the record.

    Args:
        modules: names as in `model.named_modules()`; a suffix that fits one module will do.
        embeddings: all `nn.Embedding`.
        layers: the lowest so many blocks of the stack.

    Source: 2501.13453 (embeddings and the lowest layers, about half of them). Faithful.

    Raises:
        ConfigError: nothing is chosen, or (at the start) a name that fits no module, no trained
            parameter in what is chosen, or no other one left.
    """

    modules: Sequence[str] = ()
    embeddings: bool = False
    layers: int = 0
    frozen_indices: frozenset[int] = field(default_factory=frozenset, init=False, repr=False)

    name: ClassVar[str] = "freeze"
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "2501.13453"
    fidelity: ClassVar[str] = "faithful"

    def __post_init__(self) -> None:
        if isinstance(self.modules, str) or self.layers < 0:
            raise ConfigError(
                f"guard {self.name}: modules={self.modules!r}, layers={self.layers}; modules is a "
                "list of names, layers a count"
            )
        if not self.modules and not self.embeddings and not self.layers:
            raise ConfigError(
                f"guard {self.name} freezes nothing: give modules, embeddings=True or layers"
            )

    def start(self, view: GuardView) -> None:
        """Find the parameters, by their place in every vector."""
        chosen = {id(p) for module in self._find_modules(view.model) for p in module.parameters()}
        self.frozen_indices = frozenset(at for at, p in enumerate(view.parameters) if id(p) in chosen)
        if not self.frozen_indices or len(self.frozen_indices) == len(view.parameters):
            which = "none" if not self.frozen_indices else "all"
            raise ConfigError(
                f"guard {self.name}: {which} of the {len(view.parameters)} trained parameters lie "
                "in what is to be frozen; some must, and some must be left"
            )

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Leave no gradient to what is held."""
        return self._clear_frozen(view, 0.0)

    def on_update(self, view: GuardView) -> Proposal | None:
        """Take back what moved all the same."""
        # x + (−0.0) is x for every x, while −0.0 + 0.0 would lose its sign.
        return self._clear_frozen(view, -0.0)

    def _clear_frozen(self, view: GuardView, nothing: float) -> Proposal | None:
        moving = [view.vector[at] for at in sorted(self.frozen_indices)]
        size = float(norm(moving))
        if size == 0:
            return None
        vector: Vector = [
            torch.full_like(part, nothing) if at in self.frozen_indices else part
            for at, part in enumerate(view.vector)
        ]
        return Proposal(vector, f"{len(moving)} parameters held", {"norm": size}, {"norm": 0.0})

    def _find_modules(self, model: nn.Module) -> list[nn.Module]:
        try:
            names = [find_layer(model, name) for name in self.modules]
        except BehaviorError as error:
            raise ConfigError(f"guard {self.name}: {error}") from error
        found = [model.get_submodule(name) for name in names if name is not None]
        if self.embeddings:
            found += [module for module in model.modules() if isinstance(module, nn.Embedding)]
        if self.layers:
            known = layer_stacks(model)
            if not known:
                raise ConfigError(f"guard {self.name}: no stack of layers was found; use modules=")
            full = max(known, key=lambda name: known[name])
            if self.layers > known[full]:
                raise ConfigError(
                    f"guard {self.name}: layers={self.layers}, and {full} has {known[full]}"
                )
            found += [model.get_submodule(f"{full}.{at}") for at in range(self.layers)]
        return found
