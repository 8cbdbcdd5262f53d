"""Data order of a world, and starts that are trained once and kept as safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from riprap.studies.worlds.tasks import Examples

CACHE = Path("~/.cache/riprap/worlds")
Progress = Callable[[int, int], None]  # (steps done, steps in all)


def batches(parts: list[Examples], sizes: list[int], seed: int) -> Iterator[Examples]:
    """Endless batches: `sizes[i]` rows drawn with replacement from `parts[i]`."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield Examples.join(
            [
                part[torch.randint(len(part), (size,), generator=generator)]
                for part, size in zip(parts, sizes, strict=True)
            ]
        )


def cached(
    model: nn.Module, config: Any, seed: int, cache: Path, train: Callable[[nn.Module], None]
) -> nn.Module:
    """`model` with the weights that `train` gave it, now or in an earlier run.

    The file's name is a hash of the whole configuration and the seed, so that a changed world never
    meets an old start. It is written at once or not at all.
    """
    key = hashlib.sha256(json.dumps([asdict(config), seed], sort_keys=True).encode()).hexdigest()
    path = cache.expanduser() / f"{key[:20]}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
        return model
    train(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{seed}.partial")
    save_file({name: part.contiguous() for name, part in model.state_dict().items()}, partial)
    partial.rename(path)
    return model
