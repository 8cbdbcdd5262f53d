"""Prompts with responses that are given token by token: teacher forcing in bounded batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from riprap import evaluation as probing
from riprap.behaviors import Behavior, TokenBatch, greedy_decode, last_logits, parse_token_rows
from riprap.errors import BehaviorError

MAX_LOGITS = 2**24  # of one batch: 64 MB in float32
DEFAULT_VOCAB_SIZE = 2**16  # vocabulary that is reckoned with where a model does not say its own
Prompts = Behavior | Sequence[Sequence[int]]
Rows = list[list[int]]


@dataclass(frozen=True)
class ResponseBatch:
    """Some prompts with their responses.

    Attributes:
        batch: prompt + response without its last token, one row a prompt.
        tokens: shape (n, K), the responses' ids; their padding lies on the left.
        mask: shape (n, K), whether a token is there.
    """

    batch: TokenBatch
    tokens: Tensor
    mask: Tensor

    @classmethod
    def from_rows(cls, prompts: Rows, responses: Rows) -> ResponseBatch:
        """Equally many prompts and responses, none of them empty."""
        whole = [[*p, *r[:-1]] for p, r in zip(prompts, responses, strict=True)]
        padded = TokenBatch.pad(responses)
        mask = padded.attention_mask
        there = torch.ones_like(padded.input_ids) if mask is None else mask
        return cls(TokenBatch.pad(whole), padded.input_ids, there.bool())

    def logits(self, model: nn.Module) -> Tensor:
        """What the model says of each token of the responses, shape (n, K, vocabulary)."""
        return last_logits(model, self.batch, self.mask.shape[1], self.mask.sum(-1))

    def per_response(self, values: Tensor) -> list[Tensor]:
        """Values of shape (n, K) by response, without padding, float64 on the CPU."""
        found = values.cpu().double()[self.mask]
        return list(found.split(self.mask.sum(-1).tolist()))


def response_batches(model: nn.Module, prompts: Rows, responses: Rows) -> list[ResponseBatch]:
    """All prompts in batches whose logits take a bounded memory."""
    words = getattr(getattr(model, "config", None), "vocab_size", None) or DEFAULT_VOCAB_SIZE
    longest = max(map(len, responses))
    size = max(1, MAX_LOGITS // (words * longest))
    cuts = [slice(at, at + size) for at in range(0, len(prompts), size)]
    return [ResponseBatch.from_rows(prompts[cut], responses[cut]) for cut in cuts]


def prompt_rows(prompts: Prompts) -> Rows:
    """Token ids of each prompt.

    Raises:
        BehaviorError: there are none, or a behaviour whose probes hold no tokens.
    """
    if isinstance(prompts, Behavior):
        rows = prompts.token_rows()
        if rows is None:
            raise BehaviorError(
                f"behaviour {prompts.name!r}: its probes hold no token ids; give prompts as lists "
                "of token ids"
            )
        prompts = rows
    found = parse_token_rows(cast("Iterable[Any]", prompts), "prompt")
    _require_nonempty(found, "prompt")
    return found


def paired_responses(prompts: Rows, responses: Sequence[Sequence[int]]) -> Rows:
    """The responses as lists of token ids, one a prompt.

    Raises:
        BehaviorError: another number of them, or an empty one.
    """
    found = parse_token_rows(responses, "response")
    if len(found) != len(prompts):
        raise BehaviorError(f"{len(prompts)} prompts and {len(found)} responses; give equally many")
    _require_nonempty(found, "response")
    return found


def _require_nonempty(rows: Rows, what: str) -> None:
    if not rows:
        raise BehaviorError(f"no {what}s: give at least one")
    empty = [index for index, row in enumerate(rows) if not row]
    if empty:
        raise BehaviorError(f"{what} {empty[0]} is empty: it needs at least one token")


def greedy_responses(model: nn.Module, prompts: Prompts, max_new_tokens: int) -> Rows:
    """The model's own greedy answers, such as the reference's for `force` and `divergence`.

    Args:
        tokens: the longest answer; one that the model ends is shorter, its end token included.

    Returns:
        token ids of each answer.
    """
    rows = prompt_rows(prompts)
    settings: Any = getattr(model, "config", None)
    end = getattr(settings, "eos_token_id", None)
    if hasattr(model, "generate"):
        signs = SimpleNamespace(pad_token_id=0, eos_token_id=end)
        return probing.generate(model, signs, rows, max_new_tokens)
    found: Rows = []
    with torch.inference_mode(False), torch.no_grad(), probing.preserve_training_state(model):
        for batch in _equal_length_batches(rows):
            found += greedy_decode(model, TokenBatch.pad(batch), max_new_tokens)
    return found


def _equal_length_batches(rows: Rows) -> Iterator[Rows]:
    """Neighbours of one length, so that a model without an attention mask takes them."""
    begin = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or len(rows[at]) != len(rows[begin]):
            yield rows[begin:at]
            begin = at
