"""Other weights of a model: read from disk, put into the model for a while, interpolated."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from riprap.errors import ConfigError

Weights = Mapping[str, Tensor]  # by the names of `model.named_parameters()`
Reference = nn.Module | Weights | None
NameFilter = Callable[[str], bool]


class SafetensorsFolder(Weights):
    """Weights of a saved model; each tensor is read from its file on access.

    Args:
        folder: contains `model.safetensors`, or `model.safetensors.index.json` with its shards;
            other files in it are not read.
        stored_names: for names that are not in the files: the name under which they are stored.

    Raises:
        ConfigError: the folder contains no such file, or lacks a shard.
    """

    def __init__(self, folder: str | Path, stored_names: Mapping[str, str] | None = None) -> None:
        self.folder, self.stored_names = Path(folder), dict(stored_names or {})
        files = weight_files(self.folder)
        self._files = [safe_open(file, framework="pt") for file in files]  # type: ignore[no-untyped-call]
        self._file_of = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        stored = self.stored_names.get(name, name)
        weight: Tensor = self._file_of[stored].get_tensor(stored)
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter([*self._file_of, *self.stored_names])

    def __len__(self) -> int:
        return len(self._file_of) + len(self.stored_names)


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights of a saved model, as transformers chooses them."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        beside = sorted(file.name for file in folder.glob("*.safetensors"))
        found = f" ({', '.join(beside[:3])} is not read)" if beside else ""
        raise ConfigError(
            f"{folder} contains neither {whole.name} nor {index.name}{found}: is it a saved model?"
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{index} cannot be read: {error!r}") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"{folder} lacks {missing[0]!r}, which {index.name} names")
    return [folder / name for name in names]


def all_names(_name: str) -> bool:
    """Accept every parameter name."""
    return True


def named_weights(reference: nn.Module | Weights) -> Weights:
    """Return weights by name, without a copy."""
    return dict(reference.named_parameters()) if isinstance(reference, nn.Module) else reference


def matching_names(
    model: nn.Module, weights: Weights, name_filter: NameFilter = all_names
) -> list[str]:
    """Return the names of the model's parameters that the filter accepts.

    Raises:
        ConfigError: `weights` lacks a parameter or has another shape for it: it is another model.
    """
    names = []
    for name, parameter in model.named_parameters():
        if name not in weights:
            raise ConfigError(f"the reference has no weight {name!r}: is it the same model?")
        if weights[name].shape != parameter.shape:
            raise ConfigError(
                f"weight {name!r} has shape {tuple(parameter.shape)} here and "
                f"{tuple(weights[name].shape)} in the reference: is it the same model?"
            )
        if name_filter(name):
            names.append(name)
    return names


@contextmanager
def restore_weights(
    model: nn.Module,
    weights_on_disk: Weights | None = None,
    parameters: Sequence[Tensor] | None = None,
) -> Iterator[Weights]:
    """Restore the model's parameters bit by bit on exit.

    Args:
        weights_on_disk: a copy of the model's current weights that can be read later, such as a
            `SafetensorsFolder`; None: copy them, which needs the memory of another model.
        parameters: the parameters that may change; None: all.

    Yields:
        the weights that are restored.
    """
    ids = None if parameters is None else {id(parameter) for parameter in parameters}
    changing = {n: p for n, p in model.named_parameters() if ids is None or id(p) in ids}
    original = weights_on_disk or {name: p.detach().clone() for name, p in changing.items()}
    try:
        yield original
    finally:
        with torch.no_grad():
            for name, parameter in changing.items():
                parameter.copy_(original[name])


@torch.no_grad()
def interpolate_(
    model: nn.Module, start: Weights, end: Weights, alpha: float, names: list[str]
) -> None:
    """Set the named parameters to start + α (end − start), in place.

    At α = 0 and α = 1 the weights are bit by bit those of `start` and `end`.
    """
    parameters = dict(model.named_parameters())
    for name in names:
        parameter = parameters[name]
        if alpha in (0.0, 1.0):
            parameter.copy_((start if alpha == 0.0 else end)[name])
        else:
            origin = start[name].to(parameter)
            parameter.copy_(origin + alpha * (end[name].to(parameter) - origin))


@contextmanager
def reference_model(
    model: nn.Module, reference: Reference, weights_on_disk: Weights | None = None
) -> Iterator[nn.Module]:
    """Yield the reference as a model.

    Args:
        reference: another model; weights, which are put into `model` until exit; None: `model`
            with its adapters disabled.
        weights_on_disk: see `restore_weights`.

    Raises:
        ConfigError: no reference for a model without adapters, or weights of another model.
    """
    if isinstance(reference, nn.Module):
        yield reference
    elif reference is not None:
        names = matching_names(model, reference)
        with restore_weights(model, weights_on_disk) as original:
            interpolate_(model, original, reference, 1.0, names)
            yield model
    else:
        disable_adapter: Any = getattr(model, "disable_adapter", None)
        if disable_adapter is None:
            raise ConfigError(
                "no reference was given, and the model has no adapter to disable: pass the model "
                "before training, or its weights"
            )
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            with disable_adapter():
                yield model
        finally:  # enabling adapters again makes frozen adapters trainable
            for parameter, requires_grad in flags:
                parameter.requires_grad_(requires_grad)
