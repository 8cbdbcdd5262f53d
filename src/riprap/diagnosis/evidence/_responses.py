"""Prompts with responses that are given token by token: teacher forcing in limited batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from riprap import evaluation
from riprap._text import first_line
from riprap.behaviors import Behavior, TokenBatch, greedy_decode, last_logits, parse_token_rows
from riprap.errors import BehaviorError

MAX_LOGITS = 2**24  # per batch: 64 MB in float32
DEFAULT_VOCAB_SIZE = 2**16  # of a model whose configuration does not say
Prompts = Behavior | Sequence[Sequence[int]]
Rows = list[list[int]]


@dataclass(frozen=True)
class ResponseBatch:
    """Prompts with their responses."""

    batch: TokenBatch  # prompt + response without its last token, one row per prompt
    tokens: Tensor  # shape (n, K), token ids of the responses, padded on the left
    mask: Tensor  # shape (n, K), false on padding

    @classmethod
    def from_rows(cls, prompts: Rows, responses: Rows) -> ResponseBatch:
        """Combine each prompt with its response; none may be empty."""
        rows = [[*p, *r[:-1]] for p, r in zip(prompts, responses, strict=True)]
        padded = TokenBatch.pad(responses)
        mask = padded.attention_mask
        mask = torch.ones_like(padded.input_ids) if mask is None else mask
        return cls(TokenBatch.pad(rows), padded.input_ids, mask.bool())

    def logits(self, model: nn.Module) -> Tensor:
        """Compute the logits for each token of the responses, shape (n, K, vocabulary)."""
        with name_length_errors(self.batch.input_ids.shape[1]):
            return last_logits(model, self.batch, self.mask.shape[1], self.mask.sum(-1))

    def per_response(self, values: Tensor) -> list[Tensor]:
        """Split values of shape (n, K) by response, without padding, float64 on the CPU."""
        tokens = values.cpu().double()[self.mask]
        return list(tokens.split(self.mask.sum(-1).tolist()))


@contextmanager
def name_length_errors(length: int) -> Iterator[None]:
    """Say in a sentence that the model does not take prompts with their responses."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError, ValueError) as error:
        first = first_line(error, type(error).__name__)
        raise BehaviorError(
            f"the model failed on {length} tokens, a prompt with its response ({first}): for a "
            "model of a fixed input length, pass responses= of one token each"
        ) from error


def response_batches(model: nn.Module, prompts: Rows, responses: Rows) -> list[ResponseBatch]:
    """Split prompts into batches of at most `MAX_LOGITS` logits."""
    config = getattr(model, "config", None)
    vocab_size = getattr(config, "vocab_size", None) or DEFAULT_VOCAB_SIZE
    longest = max(map(len, responses))
    size = max(1, MAX_LOGITS // (vocab_size * longest))
    cuts = [slice(at, at + size) for at in range(0, len(prompts), size)]
    return [ResponseBatch.from_rows(prompts[cut], responses[cut]) for cut in cuts]


def prompt_rows(prompts: Prompts) -> Rows:
    """Return the token ids of each prompt."""
    if isinstance(prompts, Behavior):
        probe_rows = prompts.token_rows()
        if probe_rows is None:
            why = "its probes have no token ids; pass prompts as lists of token ids"
            raise BehaviorError(f"behavior {prompts.name!r}: {why}")
        prompts = probe_rows
    rows = parse_token_rows(cast("Iterable[Any]", prompts), "prompt")
    _require_nonempty(rows, "prompt")
    return rows


def paired_responses(prompts: Rows, responses: Sequence[Sequence[int]]) -> Rows:
    """Return the responses as lists of token ids, one per prompt."""
    rows = parse_token_rows(responses, "response")
    if len(rows) != len(prompts):
        raise BehaviorError(
            f"{len(prompts)} prompts and {len(rows)} responses; pass one response per prompt"
        )
    _require_nonempty(rows, "response")
    return rows


def _require_nonempty(rows: Rows, what: str) -> None:
    if not rows:
        raise BehaviorError(f"no {what}s: pass at least one")
    empty = [index for index, row in enumerate(rows) if not row]
    if empty:
        raise BehaviorError(f"{what} {empty[0]} is empty: it needs at least one token")


def greedy_responses(model: nn.Module, prompts: Prompts, max_new_tokens: int) -> Rows:
    """Generate greedy answers, such as those of the reference for `prefix_forcing`.

    Args:
        prompts: token ids of each prompt, or a behavior whose probes have them.
        max_new_tokens: length of the longest answer; an end token stops earlier and is included.

    Returns:
        token ids of each answer.
    """
    rows = prompt_rows(prompts)
    if hasattr(model, "generate"):
        end = getattr(getattr(model, "config", None), "eos_token_id", None)
        special_tokens = SimpleNamespace(pad_token_id=0, eos_token_id=end)
        return evaluation.generate(model, special_tokens, rows, max_new_tokens)
    answers: Rows = []
    with torch.inference_mode(False), torch.no_grad(), evaluation.preserve_training_state(model):
        for batch in _equal_length_batches(rows):
            with name_length_errors(len(batch[0]) + max_new_tokens - 1):
                answers += greedy_decode(model, TokenBatch.pad(batch), max_new_tokens)
    return answers


def _equal_length_batches(rows: Rows) -> Iterator[Rows]:
    """Yield runs of rows of equal length, for models without an attention mask."""
    begin = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or len(rows[at]) != len(rows[begin]):
            yield rows[begin:at]
            begin = at
