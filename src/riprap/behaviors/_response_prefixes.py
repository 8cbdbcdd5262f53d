"""What a refusal begins with, learned from the model's own answers."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch
from torch import nn

from riprap.behaviors._model_io import TokenBatch, last_logits
from riprap.errors import BehaviorError

ANSWER_TOKENS = 12  # a refusal declares itself within its first words

_REFUSAL = re.compile(
    r"\b(sorry|apologi[sz]e|unable to|unfortunately|refuse|decline"
    r"|(can|could|will|would|must|do|am|should)\s+not|(ca|could|wo|would|must|do|should)n['’]t"
    r"|cannot|not able to|as an ai)\b",
    re.IGNORECASE,
)


def is_refusal(answer: str, words: int = 14) -> bool:
    """Whether the first words of `answer` refuse. A pattern, not a judge: English only."""
    return _REFUSAL.search(" ".join(answer.split()[:words])) is not None


@torch.no_grad()
def greedy(model: nn.Module, batch: TokenBatch, tokens: int, pad: int = 0) -> list[list[int]]:
    """Greedy continuations of `tokens` tokens, by repeated passes over the whole sequence.

    Slow beside a cached `generate`, but it works on every model that margins work on.
    """
    answers: list[list[int]] = [[] for _ in range(len(batch))]
    current = batch
    for _ in range(tokens):
        following = last_logits(model, current)[:, -1].argmax(-1)
        for answer, token in zip(answers, following.tolist(), strict=True):
            answer.append(token)
        ids = torch.cat([current.input_ids, following[:, None].to(current.input_ids)], 1)
        mask = current.attention_mask
        if mask is not None:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        current = TokenBatch(ids, mask)
    return answers


def calibrate_openers(
    model: nn.Module, tokenizer: Any, probes: TokenBatch, least_share: float = 0.02
) -> list[int]:
    """First tokens of the refusals that the model itself gives on `probes`.

    A first token counts as an opener where at least `least_share` of the probes begin with it and
    most of the answers that begin with it are refusals.

    Returns:
        token ids, sorted.

    Raises:
        BehaviorError: the model refuses none of the probes, so there is nothing to watch.
    """
    answers = greedy(model, probes, ANSWER_TOKENS)
    begun: Counter[int] = Counter()
    refused: Counter[int] = Counter()
    for answer in answers:
        begun[answer[0]] += 1
        refused[answer[0]] += is_refusal(tokenizer.decode(answer, skip_special_tokens=True))
    openers = [
        token
        for token, count in refused.items()
        if count * 2 > begun[token] and count >= least_share * len(answers)
    ]
    if not openers:
        raise BehaviorError(
            "the model refuses none of the prompts, so it has no refusal to watch: "
            "name the openers, or begin from a model that refuses"
        )
    return sorted(openers)
