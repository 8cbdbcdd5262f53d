"""Data order of a world, and starts that are trained once and kept as safetensors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from riprap.toy._tasks import Examples

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


def fingerprint(config: Any, tasks: Mapping[str, Examples]) -> str:
    """SHA-256 of a world: its configuration, and every prompt and answer of its tasks."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for name, examples in tasks.items():
        digest.update(name.encode())
        digest.update(examples.input_ids.numpy().tobytes() + examples.targets.numpy().tobytes())
    return digest.hexdigest()


def cached(
    model: nn.Module, world: str, seed: int, cache: Path, train: Callable[[nn.Module], None]
) -> nn.Module:
    """`model` with the weights that `train` gave it, now or in an earlier run.

    The file is named after the world's fingerprint and the seed, so that a changed world never
    meets an old start. It is written at once or not at all.
    """
    path = cache.expanduser() / f"{world[:20]}-{seed}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
        return model
    train(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file({name: part.contiguous() for name, part in model.state_dict().items()}, partial)
    partial.rename(path)
    return model
