"""Generation with a transformers model, for use before training and at checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from riprap.behaviors import TokenBatch, device_of
from riprap.evaluation._isolation import preserve_training_state

BATCH_SIZE = 32  # prompts in one batch: bounds the memory of a pass
PLAIN = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "use_cache": True}
GREEDY = {"do_sample": False}


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    advance: Callable[[int], object] | None = None,
) -> list[list[int]]:
    """Generate answers to prompts, greedy by default; the training state is preserved.

    The model's own generation settings for beams, sampling and repetition are ignored.

    Args:
        prompts: token ids of each prompt.
        temperature: above 0: sample from the whole distribution, divided by it.
        seed: of the samples; the generators of the training are left as they are.
        batch_size: prompts in one batch. Prompts of similar lengths are batched together.
        advance: called with the number of prompts of each batch that is done.

    Returns:
        token ids of each answer, including its end token if the model produced one, without
        padding.
    """
    pad = tokenizer.pad_token_id or 0
    ends = _end_tokens(model, tokenizer)
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    options: dict[str, Any] = PLAIN | (drawn if temperature > 0 else GREEDY)
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    answers: list[list[int]] = [[] for _ in prompts]
    isolation = preserve_training_state(model, float32_logits=False)  # answers as users see them
    with torch.inference_mode(False), torch.no_grad(), isolation:
        if temperature > 0:
            torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_size):
            own = order[start : start + batch_size]
            batch = TokenBatch.pad([prompts[at] for at in own], pad)
            ids = batch.input_ids.to(device_of(model))
            mask = batch.attention_mask
            mask = torch.ones_like(ids) if mask is None else mask.to(ids.device)
            out = model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                **options,
            )
            for at, row in zip(own, out[:, ids.shape[1] :].tolist(), strict=True):
                answers[at] = _cut_at_end(row, ends)
            if advance is not None:
                advance(len(own))
    return answers


def _end_tokens(model: nn.Module, tokenizer: Any) -> set[int]:
    """Return the ids of the tokens that end an answer."""
    known = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    known = tokenizer.eos_token_id if known is None else known
    return set(known) if isinstance(known, list) else {known}


def _cut_at_end(row: list[int], ends: set[int]) -> list[int]:
    """Return an answer up to and including its end token; what follows is padding."""
    return row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))]
