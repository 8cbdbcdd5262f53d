"""Small models and batches of a world: construction, pretraining, cache as safetensors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from riprap._extras import require
from riprap.toy._tasks import Examples

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

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


def random_llama(config: Any, vocabulary_size: int, positions: int, seed: int) -> LlamaForCausalLM:
    """Make a small `LlamaForCausalLM` with random weights.

    Args:
        config: has the sizes `hidden`, `feed_forward`, `layers`, `heads` and `initial_range`.
        positions: longest sequence, in tokens.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    require("hf", "transformers")
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=config.hidden,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        use_cache=False,
        initializer_range=config.initial_range,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(settings).float()


def fit(
    optimizer: torch.optim.Optimizer,
    next_loss: Callable[[], Tensor],
    steps: int,
    progress: Progress | None,
) -> None:
    """Take steps on the losses that `next_loss` returns, one per batch.

    The learning rate warms up for 50 steps and then falls to a fiftieth.
    """
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(1.0, (k + 1) / 50) * max(0.02, 1 - k / steps)
    )
    for step in range(steps):
        next_loss().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if progress is not None:
            progress(step + 1, steps)


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
