"""A model at other weights for a while: at its reference, on the way there, or trained away."""

from __future__ import annotations

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
Wanted = Callable[[str], bool]


class Folder(Weights):
    """The weights of a saved model, each read from its file when it is asked for.

    Args:
        folder: holds `model.safetensors`, or several files by the name of `*.safetensors`.
        tied: names that are not in the files, and under which name their weight is found.

    Raises:
        ConfigError: no such file there.
    """

    def __init__(self, folder: str | Path, tied: Mapping[str, str] | None = None) -> None:
        self.folder, self.tied = Path(folder), dict(tied or {})
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise ConfigError(f"{folder} holds no .safetensors file: is it a saved model?")
        self._files = [safe_open(file, framework="pt") for file in files]  # type: ignore[no-untyped-call]
        self._homes = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        found: Tensor = self._homes[self.tied.get(name, name)].get_tensor(self.tied.get(name, name))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter([*self._homes, *self.tied])

    def __len__(self) -> int:
        return len(self._homes) + len(self.tied)


def everything(_name: str) -> bool:
    """Every parameter."""
    return True


def weights_of(reference: nn.Module | Weights) -> Weights:
    """Weights by name, without a copy."""
    return dict(reference.named_parameters()) if isinstance(reference, nn.Module) else reference


def fitting(model: nn.Module, there: Weights, wanted: Wanted = everything) -> list[str]:
    """Names of the parameters that `there` holds too and that are wanted.

    Raises:
        ConfigError: a parameter is missing there or of another shape: the two are not one model.
    """
    names = []
    for name, own in model.named_parameters():
        if name not in there:
            raise ConfigError(f"the reference has no weight {name!r}: is it the same model?")
        if there[name].shape != own.shape:
            raise ConfigError(
                f"weight {name!r} has shape {tuple(own.shape)} here and "
                f"{tuple(there[name].shape)} in the reference: is it the same model?"
            )
        if wanted(name):
            names.append(name)
    return names


@contextmanager
def kept(
    model: nn.Module, home: Weights | None = None, only: Sequence[Tensor] | None = None
) -> Iterator[Weights]:
    """Whatever happens to the parameters inside, they are bit by bit as before afterwards.

    Args:
        home: where the weights that the model has now can be read again, such as its `Folder`;
            None: they are copied, which takes the memory of another model.
        only: those that something may happen to; None: all.

    Yields:
        the weights to which the model goes back.
    """
    meant = None if only is None else {id(part) for part in only}
    own = {n: p for n, p in model.named_parameters() if meant is None or id(p) in meant}
    back = home or {name: part.detach().clone() for name, part in own.items()}
    try:
        yield back
    finally:
        with torch.no_grad():
            for name, part in own.items():
                part.copy_(back[name])


@torch.no_grad()
def move(model: nn.Module, here: Weights, there: Weights, share: float, names: list[str]) -> None:
    """θ ← here + share · (there − here), in place, on the named parameters.

    At shares 0 and 1 the weights are bit by bit those of either end.
    """
    own = dict(model.named_parameters())
    for name in names:
        part = own[name]
        if share in (0.0, 1.0):
            part.copy_((here if share == 0.0 else there)[name])
        else:
            start = here[name].to(part)
            part.copy_(start + share * (there[name].to(part) - start))


@contextmanager
def at_reference(
    model: nn.Module, reference: Reference, home: Weights | None = None
) -> Iterator[nn.Module]:
    """The reference as a model.

    Args:
        reference: another model; weights, which are put into `model` meanwhile; None: `model`
            with its adapters switched off.
        home: see `kept`.

    Raises:
        ConfigError: no reference, and a model without adapters; or weights of another model.
    """
    if isinstance(reference, nn.Module):
        yield reference
    elif reference is not None:
        names = fitting(model, reference)
        with kept(model, home) as here:
            move(model, here, reference, 1.0, names)
            yield model
    else:
        switch: Any = getattr(model, "disable_adapter", None)
        if switch is None:
            raise ConfigError(
                "no reference is given, and the model has no adapter that could be switched off: "
                "give the model or the weights as they were before"
            )
        flags = [(part, part.requires_grad) for part in model.parameters()]
        try:
            with switch():
                yield model
        finally:  # switching on again makes adapters trainable that were frozen
            for part, required in flags:
                part.requires_grad_(required)
