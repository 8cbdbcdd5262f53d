"""The model of the last watch: a monitor follows one model, not one after another."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from riprap.errors import ConfigError
from riprap.linalg import to_local
from riprap.monitor._weight_sample import elements

_ADVICE = "create a new Monitor for each model, such as one for each fold, trial or run of a cell"


class WatchedModel:
    """Some elements of the trained parameters, at the start of the first watch and at each end.

    Keeps no reference to the model.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        self.note_end(model, parameters)
        self._at_start = self._at_end

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: it refers to no parameter of this process."""
        return self.__dict__ | {"_parameters": [_gone] * len(self._parameters)}

    def note_end(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        """Store the weights at the end of a watch."""
        self._parameters: list[Callable[[], Tensor | None]] = list(map(weakref.ref, parameters))
        self._at_end = _sample(model, parameters)

    def has_changed(self) -> bool:
        """Return whether the parameters have changed since `note_end`, for the same model."""
        live = [own() for own in self._parameters]
        copies = list(self._at_end.values())
        return any(
            parameter is not None
            and not _are_equal(elements(to_local(parameter)).cpu(), copy.cpu())
            for parameter, copy in zip(live, copies, strict=True)
        )

    def require_continued(self, model: nn.Module) -> None:
        """Check that a model is the one of the last watch, or one with the same weights.

        Raises:
            ConfigError: it is another one, or the same one set back to the start.
        """
        own = {id(parameter) for parameter in model.parameters()}
        live = [parameter for ref in self._parameters if (parameter := ref()) is not None]
        same = any(id(parameter) in own for parameter in live)
        now = _named_elements(model, self._at_end)
        if not same and not _equal(now, self._at_end):
            raise ConfigError(
                "this monitor has watched another model, and its readings are of that one: "
                f"{_ADVICE}"
            )
        trained = not _equal(self._at_start, self._at_end)
        if same and trained and _equal(_named_elements(model, self._at_start), self._at_start):
            raise ConfigError(
                "the model is back at the weights with which this monitor began, and its readings "
                f"are of the training since then: {_ADVICE}"
            )


def _gone() -> None:
    """Stand for a reference whose parameter does not exist in this process."""


def _sample(model: nn.Module, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names.get(id(p), f"tensor {i}"): elements(to_local(p)).clone()
        for i, p in enumerate(parameters)
    }


def _named_elements(model: nn.Module, like: dict[str, Tensor]) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {name: elements(to_local(parameters[name])) for name in like if name in parameters}


def _equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        part.shape == right[name].shape and torch.equal(part.cpu(), right[name].cpu())
        for name, part in left.items()
    )


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are the same, where NaN is the same as NaN."""
    if torch.equal(one, other) or one.shape != other.shape:
        return one.shape == other.shape
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
