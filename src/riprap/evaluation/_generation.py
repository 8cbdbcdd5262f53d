"""Greedy answers of a transformers model: the slow lane, for before training and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from riprap.behaviors import TokenBatch, device_of
from riprap.evaluation._isolation import no_trace

ROWS = 32  # prompts at a time: bounds the memory of a pass


def generate(
    model: nn.Module, tokenizer: Any, prompts: Sequence[list[int]], tokens: int
) -> list[list[int]]:
    """Greedy answers to prompts, without a trace on training.

    Whatever the model's own generation settings say of beams, sampling and repetition.

    Args:
        prompts: token ids of each.
        tokens: the longest answer.

    Returns:
        token ids of each answer, with its end token where the model ended it, without padding.
    """
    pad = tokenizer.pad_token_id or 0
    ends = _ends(model, tokenizer)
    found: list[list[int]] = []
    with torch.inference_mode(False), torch.no_grad(), no_trace(model):
        for at in range(0, len(prompts), ROWS):
            batch = TokenBatch.pad(list(prompts[at : at + ROWS]), pad)
            ids = batch.input_ids.to(device_of(model))
            mask = batch.attention_mask
            mask = torch.ones_like(ids) if mask is None else mask.to(ids.device)
            out = model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=tokens,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                pad_token_id=pad,
            )
            found += [_until(row, ends) for row in out[:, ids.shape[1] :].tolist()]
    return found


def _ends(model: nn.Module, tokenizer: Any) -> set[int]:
    """Ids of the tokens that end an answer."""
    config = getattr(model, "generation_config", None)
    known = getattr(config, "eos_token_id", None)
    known = tokenizer.eos_token_id if known is None else known
    return set(known) if isinstance(known, list) else {known}


def _until(row: list[int], ends: set[int]) -> list[int]:
    """An answer up to its end token, that included; what follows is padding."""
    stop = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
    return row[:stop]
