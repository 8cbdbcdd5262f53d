"""Batches of a world, and pretrained models that are cached as safetensors."""

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
Progress = Callable[[int, int], None]  # (steps done, total steps)


def batches(parts: list[Examples], sizes: list[int], seed: int) -> Iterator[Examples]:
    """Yield endless batches of `sizes[i]` rows drawn with replacement from `parts[i]`."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield Examples.join(
            [
                part[torch.randint(len(part), (size,), generator=generator)]
                for part, size in zip(parts, sizes, strict=True)
            ]
        )


def fingerprint(config: Any, tasks: Mapping[str, Examples]) -> str:
    """Hash a world: SHA-256 of its configuration and of all prompts and answers of its tasks."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for name, examples in tasks.items():
        digest.update(name.encode())
        digest.update(examples.input_ids.numpy().tobytes() + examples.targets.numpy().tobytes())
    return digest.hexdigest()


def train_or_load(
    model: nn.Module, world: str, seed: int, cache: Path, train: Callable[[nn.Module], None]
) -> nn.Module:
    """Load the weights of `model` from the cache; without a cached file, train and cache it.

    The file name contains the fingerprint of the world and the seed: a changed world never loads
    an old model. The file is written atomically.
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
