"""Small Llama models of the worlds: construction, training, adapters and exact answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from experiments.worlds.continual_rows import IGNORED, WIDTH, Rows
from riprap.toy import Progress, fit, random_llama


def untrained(config: Any, vocabulary_size: int, seed: int) -> LlamaForCausalLM:
    """Return a model with random weights; see `riprap.toy.random_llama`."""
    return random_llama(config, vocabulary_size, WIDTH + 2, seed)


def fit_rows(
    model: nn.Module, data: Iterator[Rows], steps: int, rate: float, progress: Progress | None
) -> None:
    """Train all parameters in place; see `riprap.toy.fit`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    fit(optimizer, lambda: model(**next(data).batch).loss, steps, progress)


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
