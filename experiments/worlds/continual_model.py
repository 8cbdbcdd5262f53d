"""The continual world's model: how it is made, trained, adapted and asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.worlds.continual_rows import IGNORED, WIDTH, Rows
from riprap.toy import Progress

if TYPE_CHECKING:
    from experiments.worlds.continual import ContinualConfig


def untrained(config: ContinualConfig, seed: int) -> LlamaForCausalLM:
    """The model with random weights."""
    settings = LlamaConfig(
        vocab_size=len(config.words),
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
    """Train all parameters, the rate warmed up and then falling to a fiftieth."""
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


def adapted(model: nn.Module, config: ContinualConfig, seed: int) -> Any:
    """The model under a fresh LoRA adapter on all of its linear layers; nothing else is trained.

    Returns:
        a PEFT model; its `merge_and_unload()` gives the model with what the adapter learned.
    """
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=config.rank, lora_alpha=int(config.scale), target_modules="all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, settings)  # type: ignore[arg-type]


@torch.no_grad()
def exact(model: nn.Module, rows: Rows) -> Tensor:
    """Whether greedy decoding gives a row's whole answer, shape (n,).

    Teacher-forced: all of its tokens are the most likely ones exactly where decoding finds them.
    """
    batch = rows.batch
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:]
    right = logits[:, :-1].argmax(-1) == labels
    return (right | (labels == IGNORED)).all(1)
