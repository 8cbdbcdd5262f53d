"""The ground around a checkpoint: the model put at θ + Σ αᵢ dᵢ, one weight, one block at a time.

θ is kept in a file, written once and read block by block; directions are drawn anew from their
seeds whenever they are needed. So nothing of the model's size is ever held beside the model, no
error adds up from point to point, and what is put back are the very bits that were there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import torch
from torch import Tensor, nn

from riprap._distributed import sharded
from riprap.errors import ConfigError, RiprapError
from riprap.linalg import widened

BLOCK = 1 << 18  # elements worked on at a time; the directions of a seed depend on it

# A direction: for each moved weight, which draws of Gaussian noise it is made of, by their share.
Ray = list[dict[int, float]]

_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.batchnorm._NormBase,
)


def moved(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that directions move, by name; tied ones once.

    Left out are those of normalisation layers, as in the paper's code, and an adapter's own (PEFT):
    its product is added to a weight that moves, so that the sum moves as the merged weight does.

    Raises:
        ConfigError: weights that are sharded, or that are no real floating-point numbers.
    """
    if sharded(model):
        raise ConfigError(
            "the model's weights are sharded by FSDP; a basin needs a whole model on every rank: "
            "give each its own copy, and they will share the directions"
        )
    left_out = {id(part) for module in model.modules() for part in _of_norm(module)}
    prefixes = [
        module.prefix
        for module in model.modules()
        if hasattr(module, "peft_config") and isinstance(getattr(module, "prefix", None), str)
    ]
    found = {}
    for name, part in model.named_parameters():
        if id(part) in left_out or any(f".{prefix}" in name for prefix in prefixes):
            continue
        if not part.is_floating_point():
            raise ConfigError(
                f"weight {name!r} is {part.dtype}: only floating-point weights can be moved; "
                "load the model unquantized"
            )
        found[name] = part
    return found


def _of_norm(module: nn.Module) -> list[nn.Parameter]:
    """The weights of a normalisation layer, told by its class, or by its name and their shape."""
    own = list(module.parameters(recurse=False))
    if isinstance(module, _NORMS):
        return own
    return [part for part in own if part.dim() < 2 and "norm" in type(module).__name__.lower()]


def blocks(part: Tensor) -> Iterator[Tensor]:
    """Views of consecutive rows, some `BLOCK` elements each."""
    whole = torch.atleast_1d(part.detach())
    rows = max(1, BLOCK * len(whole) // max(1, whole.numel()))
    yield from whole.split(rows)


def _bytes(block: Tensor) -> np.ndarray:
    """A block's bits; of a contiguous one on the CPU a view."""
    found: np.ndarray = block.cpu().contiguous().view(torch.uint8).numpy()
    return found


def checksum(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers with their names, shapes and types."""
    digest = hashlib.sha256()
    for name, part in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {tuple(part.shape)} {part.dtype}".encode())
        for block in blocks(part):
            digest.update(_bytes(block).data)
    return digest.hexdigest()


class Stored(Mapping[str, Tensor]):
    """Weights in a temporary file that nobody else sees, each read when it is asked for."""

    def __init__(self, parts: Mapping[str, Tensor], file: IO[bytes]) -> None:
        self._file = file
        self._homes = {}
        for name, part in parts.items():
            self._homes[name] = (file.tell(), part.shape, part.dtype)
            for block in blocks(part):
                file.write(_bytes(block).data)

    def beside(self, name: str, part: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of `part`, each with what was stored of it, on the CPU."""
        self._file.seek(self._homes[name][0])
        for block in blocks(part):
            original = torch.empty(block.shape, dtype=block.dtype)
            self._file.readinto(_bytes(original))  # type: ignore[attr-defined]
            yield block, original

    def __getitem__(self, name: str) -> Tensor:
        _, shape, dtype = self._homes[name]
        found = torch.empty(shape, dtype=dtype)
        for block, original in self.beside(name, found):
            block.copy_(original)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)


@contextmanager
def stored(parts: Mapping[str, Tensor]) -> Iterator[Stored]:
    """Weights as they are now, on disk in the folder for temporary files, for the time being."""
    with TemporaryFile() as file:
        yield Stored(parts, file)


class Ground:
    """A model that can be put anywhere around its weights θ; see `ground`.

    Attributes:
        parts: the weights that move, by name.
        checksum: of the whole model at θ.
    """

    def __init__(
        self, parts: dict[str, nn.Parameter], home: Stored, seed: int, checksum: str
    ) -> None:
        self.parts, self.checksum, self._home = parts, checksum, home
        self._first = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._norms = []
        for name, part in parts.items():
            size = math.sqrt(sum(_dot(block, block) for block in blocks(part)))
            if not math.isfinite(size):
                raise ConfigError(f"weight {name!r} holds numbers that are not finite")
            self._norms.append(size)

    def ray(self, number: int) -> Ray:
        """Direction `number` of the seed: Gaussian, ‖d‖ = ‖θ‖ in each weight."""
        found = []
        for index, part in enumerate(self.parts.values()):
            square = sum(_dot(g, g) for (g,) in self._noise(index, part, [number]))
            found.append({number: _ratio(self._norms[index], math.sqrt(square))})
        return found

    def across(self, first: int, second: int) -> Ray:
        """Direction `second` made orthogonal to `first` in each weight, then ‖d‖ = ‖θ‖ again.

        A weight of one element has no second direction, and none is given to it.
        """
        found = []
        for index, part in enumerate(self.parts.values()):
            along = cross = own = 0.0
            for g, h in self._noise(index, part, [first, second]):
                along, cross, own = along + _dot(g, g), cross + _dot(g, h), own + _dot(h, h)
            share = _ratio(cross, along)
            left = own - share * cross  # ‖h − share · g‖²
            size = _ratio(self._norms[index], math.sqrt(left)) if left > 1e-9 * own else 0.0
            found.append({first: -share * size, second: size})
        return found

    @torch.no_grad()
    def put(self, *steps: tuple[Ray, float]) -> None:
        """θ + Σ α d, for each (d, α) of `steps`; without any, or with all α = 0, θ bit by bit.

        Computed in at least float32, then rounded to the weight's own type.
        """
        for index, (name, part) in enumerate(self.parts.items()):
            shares: dict[int, float] = {}
            for ray, step in steps:
                for number, share in ray[index].items():
                    shares[number] = shares.get(number, 0.0) + step * share
            shares = {number: share for number, share in shares.items() if share}
            noise = self._noise(index, part, list(shares))
            for (block, original), draws in zip(self._home.beside(name, part), noise, strict=True):
                place = widened(original)
                for draw, share in zip(draws, shares.values(), strict=True):
                    place = place + draw.mul_(share)
                block.copy_(place)

    def _noise(self, index: int, part: Tensor, numbers: list[int]) -> Iterator[list[Tensor]]:
        """For each block of a weight, its part of the Gaussian draws by these numbers.

        Drawn on the CPU in float32, so that they are the same wherever the model is. Neighbouring
        seeds, since the generator takes 32 bits only, and hashes of as many pairs would meet.
        """
        draws = []
        for number in numbers:
            seed = (self._first + number * len(self.parts) + index) % 2**32
            draws.append(torch.Generator().manual_seed(seed))
        for block in blocks(part):
            yield [torch.randn(block.shape, generator=draw) for draw in draws]


def _dot(left: Tensor, right: Tensor) -> float:
    """⟨left, right⟩ in float64, on the CPU: not every device has float64."""
    return float(torch.dot(left.cpu().double().flatten(), right.cpu().double().flatten()))


def _ratio(over: float, under: float) -> float:
    return over / under if under else 0.0


@contextmanager
def ground(model: nn.Module, seed: int) -> Iterator[Ground]:
    """A model that may be moved; afterwards it is bit by bit what it was, which is checked.

    Costs a file of the model's size among the temporary ones, and the memory of a few blocks.

    Raises:
        ConfigError: see `moved`; or weights that are not finite.
        RiprapError: something else changed the model meanwhile.
    """
    parts = moved(model)
    before = checksum(model)
    with stored(parts) as home:
        whole = Ground(parts, home, seed, before)
        try:
            yield whole
        finally:
            whole.put()
    if checksum(model) != before:
        raise RiprapError(
            "the model is not bit by bit what it was before its basin was measured: something "
            "besides, such as a margin function, changed its weights or buffers"
        )
