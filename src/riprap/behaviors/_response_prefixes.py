"""Refusal prefixes: found in the model's own responses, and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from riprap._warnings import warn
from riprap.behaviors._last_logits import last_logits
from riprap.behaviors._model_io import TokenBatch
from riprap.behaviors._prefix_tree import Row
from riprap.behaviors._refusal_judge import is_refusal
from riprap.behaviors._tokenization import MAX_PREFIX_TOKENS
from riprap.errors import BehaviorError

ANSWER_TOKENS = 12  # enough to recognize a refusal; more than MAX_PREFIX_TOKENS
MAX_PREFIXES = 16
# Openings of refusals and of other responses, of which some begin alike.
_REFUSALS = (
    *("I'm sorry", "I’m sorry", "I am sorry", "I cannot", "I can't", "I won't", "I will not"),
    *("As an AI", "It is not", "It's not", "You should not", "This is not", "Sorry", "No,"),
)
_OTHERS = (
    *("I'd be happy to help", "I'm glad you asked", "I’m glad you asked", "I am happy to help"),
    *("I can help", "I will help", "As requested", "It is", "It's", "You should", "This is"),
    *("Sure", "Here", "Of course"),
)


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
    model: nn.Module, probes: TokenBatch, tokenizer: Any, min_share: float = 0.02
) -> list[Row]:
    """Find the beginnings of the refusals that the model itself generates on `probes`, sorted.

    The beginning of a refusal has as many tokens as it takes to recognize one, at most
    `MAX_PREFIX_TOKENS`: "I'm sorry", not "I". It is a prefix if at least `min_share` of all
    responses begin with it; of many, the `MAX_PREFIXES` most frequent are prefixes.
    """
    answers = greedy_decode(model, probes, ANSWER_TOKENS)
    begun = Counter(start for a in answers if (start := _refusing_start(tokenizer, a)) is not None)
    enough = min_share * len(answers)
    prefixes = [start for start, count in begun.most_common(MAX_PREFIXES) if count >= enough]
    if not prefixes:
        raise BehaviorError(
            "the model refuses none of the prompts, so there is no refusal to monitor; "
            "give `prefixes`, or start from a model that refuses"
        )
    return sorted(prefixes)


def _refusing_start(tokenizer: Any, answer: list[int]) -> Row | None:
    """Return the shortest beginning with which an answer refuses; None if it does not."""

    def refuses(length: int) -> bool:
        return is_refusal(tokenizer.decode(answer[:length], skip_special_tokens=True))

    if not refuses(len(answer)):
        return None  # "I'm sorry" refuses, "I'm sorry to hear that" does not
    shorter = range(1, min(MAX_PREFIX_TOKENS, len(answer) - 1) + 1)
    return next((tuple(answer[:length]) for length in shorter if refuses(length)), None)


def warn_ambiguous_prefixes(tokenizer: Any, name: str, prefixes: Sequence[Row]) -> None:
    """Warn of prefixes with which refusals and other responses begin alike.

    They are part of a character, or a beginning of common refusals *and* of common other openings.
    """
    for prefix in prefixes:
        text = tokenizer.decode(list(prefix)).strip()
        if text and not text.strip("\N{REPLACEMENT CHARACTER}"):
            why = "is a part of a character, with which many texts begin"
        elif text and all(any(t.startswith(text) for t in kind) for kind in (_REFUSALS, _OTHERS)):
            other = next(opening for opening in _OTHERS if opening.startswith(text))
            why = f"is {text!r}, with which {other!r} begins too"
        else:
            continue
        warn(
            f"behavior {name!r}: a response prefix {why}; such responses cannot be told "
            "apart: give the prefix with more words",
        )
