"""Freeze: keep some parts of the model exactly unchanged."""

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
    """Keep the chosen parameters bit-identical, also against weight decay and momentum.

    Their gradient is set to 0, so that norms and optimizer state are those of the other parameters;
    after the step they are restored exactly, because weight decay and momentum move a parameter
    without a gradient too. A tied weight is frozen wherever it is used. The guard saves no memory:
    to freeze for a whole run, call `requires_grad_(False)` before you create the optimizer. Use
    the guard for a part of a run, or to have the freezing in the record.

    Args:
        modules: names as in `model.named_modules()`, or suffixes that match one module.
        embeddings: freeze all `nn.Embedding`.
        layers: number of the lowest blocks of the stack to freeze.

    Source: 2501.13453 (embeddings and the lowest layers, about half of them). Faithful.

    Raises:
        ConfigError: nothing is chosen; in `start`, a name matches no module, or the chosen modules
            contain none or all of the trained parameters.
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
            raise self._error(
                f"modules={self.modules!r}, layers={self.layers}; modules must be a list of names, "
                "and layers a count"
            )
        if not self.modules and not self.embeddings and not self.layers:
            raise ConfigError(
                f"guard {self.label} freezes nothing; give modules, embeddings=True or layers"
            )

    def start(self, view: GuardView) -> None:
        """Find the indices of the frozen parameters."""
        modules = self._find_modules(view.model)
        chosen = {id(p) for module in modules for p in module.parameters()}
        self.frozen_indices = frozenset(
            at for at, parameter in enumerate(view.parameters) if id(parameter) in chosen
        )
        if len(self.frozen_indices) in (0, len(view.parameters)):
            which = "none" if not self.frozen_indices else "all"
            raise self._error(
                f"{which} of the {len(view.parameters)} trained parameters are in the chosen "
                "modules; freeze some of them, not all"
            )

    def extend(self, view: GuardView, joined: Sequence[int]) -> None:
        """Find the indices of the frozen parameters anew."""
        self.start(view)

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Set the gradient of the frozen parameters to 0."""
        return self._clear_frozen(view, 0.0)

    def on_update(self, view: GuardView) -> Proposal | None:
        """Undo the update of the frozen parameters."""
        # x + (−0.0) is x for every x, while −0.0 + 0.0 would lose its sign.
        return self._clear_frozen(view, -0.0)

    def _clear_frozen(self, view: GuardView, zero: float) -> Proposal | None:
        frozen = [view.vector[at] for at in sorted(self.frozen_indices)]
        size = float(norm(frozen))
        if size == 0:
            return None
        vector: Vector = [
            torch.full_like(part, zero) if at in self.frozen_indices else part
            for at, part in enumerate(view.vector)
        ]
        detail = f"kept {len(frozen)} of {len(view.vector)} parameters unchanged"
        return Proposal(vector, detail, {"norm": size}, {"norm": 0.0})

    def _find_modules(self, model: nn.Module) -> list[nn.Module]:
        try:
            names = [find_layer(model, name) for name in self.modules]
        except BehaviorError as error:
            raise self._error(str(error)) from error
        modules = [model.get_submodule(name) for name in names if name is not None]
        if self.embeddings:
            modules += [module for module in model.modules() if isinstance(module, nn.Embedding)]
        if self.layers:
            stacks = layer_stacks(model)
            if not stacks:
                raise self._error("no stack of layers was found; use modules=")
            largest = max(stacks, key=lambda name: stacks[name])
            if self.layers > stacks[largest]:
                raise self._error(f"layers={self.layers}, but {largest} has {stacks[largest]}")
            modules += [model.get_submodule(f"{largest}.{at}") for at in range(self.layers)]
        return modules
