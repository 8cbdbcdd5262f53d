"""Small Llama models of the worlds: construction, training, adapters and exact answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.worlds.continual_rows import IGNORED, WIDTH, Rows
from riprap.toy import Progress


def untrained(config: Any, vocabulary_size: int, seed: int) -> LlamaForCausalLM:
    """Return a model with random weights.

    Args:
        config: has the sizes `hidden`, `feed_forward`, `layers`, `heads` and `initial_range`.
    """
    settings = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=config.hidden,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=WIDTH + 2,
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
    model: nn.Module, data: Iterator[Rows], steps: int, rate: float, progress: Progress | None
) -> None:
    """Train all parameters in place; the rate warms up and then falls to a fiftieth."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(1.0, (k + 1) / 50) * max(0.02, 1 - k / steps)
    )
    for step in range(steps):
        model(**next(data).batch).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if progress is not None:
            progress(step + 1, steps)


def adapted(model: nn.Module, rank: int, scale: float, seed: int) -> Any:
    """Wrap a model in a new LoRA adapter on all of its linear layers; only it is trained.

    Returns:
        a PEFT model, whose `merge_and_unload()` returns the model with the adapter merged.
    """
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=rank, lora_alpha=int(scale), target_modules="all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, settings)  # type: ignore[arg-type]


@torch.no_grad()
def exact(model: nn.Module, rows: Rows) -> Tensor:
    """Tell for each row if greedy decoding gives its whole answer, shape (n,).

    Computed with teacher forcing: decoding gives an answer if all of its tokens are most likely.
    """
    batch = rows.batch
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:]
    right = logits[:, :-1].argmax(-1) == labels
    return (right | (labels == IGNORED)).all(1)
