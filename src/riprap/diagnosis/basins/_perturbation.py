"""Move a model to θ + Σ αᵢ dᵢ, one block of a weight at a time, and restore it bit by bit.

θ is written to a file once and read block by block; directions are drawn again from their seeds
when they are needed. So nothing of the size of the model is held in memory beside it, errors do not
accumulate from point to point, and the original bits are restored.
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

from riprap._distributed import has_sharded_parameters
from riprap.errors import ConfigError, RiprapError
from riprap.linalg import upcast

BLOCK_SIZE = 1 << 18  # elements processed at a time; the directions of a seed depend on it

# A direction: for each weight, the coefficients of the numbered Gaussian draws that it consists of.
Direction = list[dict[int, float]]

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


def perturbed_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that directions move, by name; tied weights once.

    Excluded are normalization layers, as in the code of the paper, and the weights of adapters
    (PEFT): their product is added to a weight that moves, so the sum moves as the merged weight
    would.

    Raises:
        ConfigError: sharded weights, or weights that are not real floating-point numbers.
    """
    if has_sharded_parameters(model):
        raise ConfigError(
            "the model's weights are sharded by FSDP; a basin needs a whole model on every rank: "
            "give each rank its own copy, and they will share the directions"
        )
    excluded = {id(part) for module in model.modules() for part in _norm_parameters(module)}
    tuners = [module for module in model.modules() if hasattr(module, "peft_config")]
    prefixes = [t.prefix for t in tuners if isinstance(getattr(t, "prefix", None), str)]
    perturbed = {}
    for name, part in model.named_parameters():
        if id(part) in excluded or any(f".{prefix}" in name for prefix in prefixes):
            continue
        if not part.is_floating_point():
            raise ConfigError(
                f"weight {name!r} is {part.dtype}: only floating-point weights can be moved; "
                "load the model unquantized"
            )
        perturbed[name] = part
    return perturbed


def _norm_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Weights of a normalization layer, recognized by its class, or by its name and their shape."""
    is_norm, has_name = isinstance(module, _NORMS), "norm" in type(module).__name__.lower()
    parameters = module.parameters(recurse=False)
    return [part for part in parameters if is_norm or (has_name and part.dim() < 2)]


def blocks(part: Tensor) -> Iterator[Tensor]:
    """Yield views of consecutive rows, of about `BLOCK_SIZE` elements each."""
    whole = torch.atleast_1d(part.detach())
    rows = max(1, BLOCK_SIZE * len(whole) // max(1, whole.numel()))
    yield from whole.split(rows)


def _bytes(block: Tensor) -> np.ndarray:
    """Bytes of a block; a view if it is contiguous and on the CPU."""
    array: np.ndarray = block.cpu().contiguous().view(torch.uint8).numpy()
    return array


def checksum(model: nn.Module) -> str:
    """Compute the SHA-256 of all weights and buffers with their names, shapes and types."""
    digest = hashlib.sha256()
    for name, part in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {tuple(part.shape)} {part.dtype}".encode())
        for block in blocks(part):
            digest.update(_bytes(block).data)
    return digest.hexdigest()


class WeightsOnDisk(Mapping[str, Tensor]):
    """Weights in an anonymous temporary file, each read on access."""

    def __init__(self, parameters: Mapping[str, Tensor], file: IO[bytes]) -> None:
        self._file = file
        self._locations = {}
        for name, part in parameters.items():
            self._locations[name] = (file.tell(), part.shape, part.dtype)
            for block in blocks(part):
                file.write(_bytes(block).data)

    def blocks_with_original(self, name: str, part: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield blocks of `part`, each with its stored original, on the CPU."""
        self._file.seek(self._locations[name][0])
        for block in blocks(part):
            original = torch.empty(block.shape, dtype=block.dtype)
            self._file.readinto(_bytes(original))  # type: ignore[attr-defined]
            yield block, original

    def __getitem__(self, name: str) -> Tensor:
        _, shape, dtype = self._locations[name]
        weight = torch.empty(shape, dtype=dtype)
        for block, original in self.blocks_with_original(name, weight):
            block.copy_(original)
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._locations)

    def __len__(self) -> int:
        return len(self._locations)


@contextmanager
def store_on_disk(parameters: Mapping[str, Tensor]) -> Iterator[WeightsOnDisk]:
    """Store the current weights in the folder for temporary files until exit."""
    with TemporaryFile() as file:
        yield WeightsOnDisk(parameters, file)


class WeightPerturbation:
    """A model that can be moved around its weights θ; `checksum` is that of the model at θ."""

    def __init__(
        self, parameters: dict[str, nn.Parameter], original: WeightsOnDisk, seed: int, checksum: str
    ) -> None:
        self.parameters, self.checksum, self._original = parameters, checksum, original
        self._first_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._norms = []
        for name, part in parameters.items():
            norm = math.sqrt(sum(_dot(block, block) for block in blocks(part)))
            if not math.isfinite(norm):
                raise ConfigError(f"weight {name!r} has entries that are not finite")
            self._norms.append(norm)

    def direction(self, number: int) -> Direction:
        """Return direction `number` of the seed: Gaussian, ‖d‖ = ‖θ‖ in each weight."""
        direction = []
        for index, part in enumerate(self.parameters.values()):
            square = sum(_dot(g, g) for (g,) in self._noise(index, part, [number]))
            direction.append({number: _ratio(self._norms[index], math.sqrt(square))})
        return direction

    def orthogonal_to(self, first: int, second: int) -> Direction:
        """Return direction `second` made orthogonal to `first` in each weight, ‖d‖ = ‖θ‖.

        A weight of one element has no second direction, so its coefficients are 0.
        """
        direction = []
        for index, part in enumerate(self.parameters.values()):
            gg = gh = hh = 0.0
            for g, h in self._noise(index, part, [first, second]):
                gg, gh, hh = gg + _dot(g, g), gh + _dot(g, h), hh + _dot(h, h)
            projection = _ratio(gh, gg)
            rest = hh - projection * gh  # ‖h − projection · g‖²
            scale = _ratio(self._norms[index], math.sqrt(rest)) if rest > 1e-9 * hh else 0.0
            direction.append({first: -projection * scale, second: scale})
        return direction

    @torch.no_grad()
    def apply(self, *steps: tuple[Direction, float]) -> None:
        """Set the weights to θ + Σ α d over the (d, α) of `steps`.

        Without steps, or if all α = 0, the weights are θ bit by bit. Otherwise they are computed in
        at least float32 and rounded to their own type.
        """
        for index, (name, part) in enumerate(self.parameters.items()):
            total: dict[int, float] = {}
            for direction, alpha in steps:
                for number, coefficient in direction[index].items():
                    total[number] = total.get(number, 0.0) + alpha * coefficient
            coefficients = {number: value for number, value in total.items() if value}
            noise = self._noise(index, part, list(coefficients))
            stored = self._original.blocks_with_original(name, part)
            for (block, original), draws in zip(stored, noise, strict=True):
                moved = upcast(original)
                for draw, coefficient in zip(draws, coefficients.values(), strict=True):
                    moved = moved + draw.mul_(coefficient)
                block.copy_(moved)

    def _noise(self, index: int, part: Tensor, numbers: list[int]) -> Iterator[list[Tensor]]:
        """Yield, for each block of a weight, its part of the numbered draws, equal on all devices.

        Seeds are consecutive: hashes of so many pairs would collide in the generator's 32 bits.
        """
        first, count = self._first_seed + index, len(self.parameters)
        seeds = [(first + number * count) % 2**32 for number in numbers]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for block in blocks(part):
            yield [torch.randn(block.shape, generator=generator) for generator in generators]


def _dot(left: Tensor, right: Tensor) -> float:
    """⟨left, right⟩ in float64, on the CPU, because not every device has float64."""
    return float(torch.dot(left.cpu().double().flatten(), right.cpu().double().flatten()))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


@contextmanager
def perturbed_weights(model: nn.Module, seed: int) -> Iterator[WeightPerturbation]:
    """Yield the model's perturbation; restore the weights on exit, and check a SHA-256 of them.

    Needs a temporary file of the size of the model, and memory for a few blocks.

    Raises:
        ConfigError: see `perturbed_parameters`; or weights that are not finite.
        RiprapError: something else changed the model in the meantime.
    """
    parameters = perturbed_parameters(model)
    before = checksum(model)
    with store_on_disk(parameters) as original:
        perturbation = WeightPerturbation(parameters, original, seed, before)
        try:
            yield perturbation
        finally:
            perturbation.apply()
    if checksum(model) != before:
        raise RiprapError(
            "the model is not bit by bit what it was before its basin was measured: something "
            "else, such as a margin function, changed its weights or buffers"
        )
