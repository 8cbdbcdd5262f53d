"""Refusal prefixes, found in the model's own responses."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

from riprap.behaviors._model_io import TokenBatch, last_logits
from riprap.behaviors._refusal_judge import is_refusal
from riprap.errors import BehaviorError

ANSWER_TOKENS = 12  # enough to recognize a refusal


@torch.no_grad()
def greedy_decode(
    model: nn.Module, batch: TokenBatch, max_new_tokens: int, pad: int = 0
) -> list[list[int]]:
    """Generate greedy continuations by repeated passes over the whole sequence.

    Slower than a cached `generate`, but works on every model that margins work on.
    """
    answers: list[list[int]] = [[] for _ in range(len(batch))]
    current = batch
    for _ in range(max_new_tokens):
        next_tokens = last_logits(model, current)[:, -1].argmax(-1)
        for answer, token in zip(answers, next_tokens.tolist(), strict=True):
            answer.append(token)
        ids = torch.cat([current.input_ids, next_tokens[:, None].to(current.input_ids)], 1)
        mask = current.attention_mask
        if mask is not None:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        current = TokenBatch(ids, mask)
    return answers


def find_refusal_prefixes(
    model: nn.Module, tokenizer: Any, probes: TokenBatch, min_share: float = 0.02
) -> list[int]:
    """Find the first tokens of the refusals that the model itself generates on `probes`, sorted.

    A first token is a refusal prefix if at least `min_share` of all responses are refusals that
    start with it, and most of the responses that start with it are refusals.
    """
    answers = greedy_decode(model, probes, ANSWER_TOKENS)
    total: Counter[int] = Counter()
    refused: Counter[int] = Counter()
    for answer in answers:
        total[answer[0]] += 1
        refused[answer[0]] += is_refusal(tokenizer.decode(answer, skip_special_tokens=True))
    prefixes = [
        token
        for token, count in refused.items()
        if count * 2 > total[token] and count >= min_share * len(answers)
    ]
    if not prefixes:
        raise BehaviorError(
            "the model refuses none of the prompts, so there is no refusal to monitor; "
            "give `prefixes`, or start from a model that refuses"
        )
    return sorted(prefixes)
