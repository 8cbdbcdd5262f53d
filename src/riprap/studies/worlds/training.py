"""Training a world's start, once per seed: the result is kept as safetensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from riprap.studies.worlds.tasks import Examples

DEFAULT_CACHE = Path("~/.cache/riprap/worlds")
Progress = Callable[[int, int], None]  # (steps done, steps in all)


def batches(examples: list[Examples], sizes: list[int], seed: int) -> Iterator[Examples]:
    """Endless batches: `sizes[i]` rows drawn with replacement from `examples[i]`."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield Examples.join(
            [
                part[torch.randint(len(part), (size,), generator=generator)]
                for part, size in zip(examples, sizes, strict=True)
            ]
        )
