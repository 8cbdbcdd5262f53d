"""Log-likelihoods of continuations under a live model, for multiple choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from riprap._distributed import has_sharded_parameters
from riprap.behaviors import TokenBatch, encode_continuations, last_logits
from riprap.errors import ConfigError
from riprap.evaluation import preserve_training_state

Advance = Callable[[int], object]
MAX_TOKENS = 4096  # in one pass, with padding


@dataclass(frozen=True)
class Continuation:
    """Log-likelihood of one continuation.

    Attributes:
        log_prob: of all its tokens, in nats.
        is_greedy: whether greedy decoding would produce it.
        truncated: tokens of the context that were cut, because the model does not read so many.
    """

    log_prob: float
    is_greedy: bool
    truncated: int = 0


def encode_pair(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the token ids of a context and of its continuation, cut where the context ends.

    Spaces at the context's end belong to the continuation, and both are encoded together, as in
    lm-eval: a word keeps the token that it has in a running text.

    Raises:
        ConfigError: the continuation has no tokens of its own.
    """
    bare = context.rstrip()
    if not bare:
        start = tokenizer.bos_token_id
        start = tokenizer.eos_token_id if start is None else start
        if start is None:
            raise ConfigError("the tokenizer has no token to begin an empty context with")
        return [start], encode_continuations(tokenizer, [continuation])[0]
    whole = list(tokenizer(context + continuation)["input_ids"])
    before = list(tokenizer(bare)["input_ids"])
    if len(whole) <= len(before):
        raise ConfigError(f"the continuation {continuation[:80]!r} adds no tokens to its context")
    return whole[: len(before)], whole[len(before) :]


def longest_input(model: nn.Module) -> int | None:
    """Return how many tokens a model reads at most, as its configuration says."""
    config = getattr(model, "config", None)
    known = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    return next((value for value in known if isinstance(value, int) and value > 0), None)


def check_pairs(
    model: nn.Module, pairs: Sequence[tuple[list[int], list[int]]]
) -> list[tuple[list[int], list[int]]]:
    """Return pairs of token ids as the model reads them, with contexts that are cut to fit.

    Raises:
        ConfigError: the parameters are sharded over ranks, or a continuation is too long.
    """
    if has_sharded_parameters(model):
        raise ConfigError("evals read a whole model: save the checkpoint, and run `riprap eval`")
    limit = longest_input(model)
    return [_cut(context, continuation, limit) for context, continuation in pairs]


def score_pairs(
    model: nn.Module,
    pairs: Sequence[tuple[list[int], list[int]]],
    advance: Advance | None = None,
) -> list[Continuation]:
    """Return the log-likelihood of each continuation after its context, from token ids.

    The training state is preserved. Pairs of similar lengths are computed together; a context that
    is too long for the model is cut at its beginning.

    Raises:
        ConfigError: the parameters are sharded over ranks, or a continuation is too long.
    """
    cut = check_pairs(model, pairs)
    order = sorted(range(len(cut)), key=lambda at: len(cut[at][0]) + len(cut[at][1]))
    found: dict[int, Continuation] = {}
    with torch.inference_mode(False), torch.no_grad(), preserve_training_state(model):
        for own in _batches([len(cut[at][0]) + len(cut[at][1]) for at in order]):
            rows = [order[at] for at in own]
            for at, one in zip(rows, _score(model, [cut[at] for at in rows]), strict=True):
                dropped = len(pairs[at][0]) - len(cut[at][0])
                found[at] = Continuation(*one, truncated=dropped)
            if advance is not None:
                advance(len(rows))
    return [found[at] for at in range(len(cut))]


def _cut(
    context: list[int], continuation: list[int], limit: int | None
) -> tuple[list[int], list[int]]:
    """Drop the beginning of a context that is too long together with its continuation."""
    if limit is None:
        return context, continuation
    if len(continuation) >= limit:
        raise ConfigError(
            f"a continuation has {len(continuation):,} tokens, and the model reads {limit:,} at "
            "most, with a context"
        )
    return context[max(0, len(context) + len(continuation) - limit) :], continuation


def _batches(lengths: list[int]) -> list[range]:
    """Cut rows in ascending order of length into batches of at most `MAX_TOKENS`."""
    batches, start = [], 0
    for at, length in enumerate(lengths):
        if at > start and (at - start + 1) * length > MAX_TOKENS:
            batches.append(range(start, at))
            start = at
    return [*batches, range(start, len(lengths))] if lengths else []


def _score(model: nn.Module, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    width = max(len(continuation) for _, continuation in pairs)
    batch = TokenBatch.pad([context + continuation for context, continuation in pairs])
    n_used = torch.tensor([len(continuation) + 1 for _, continuation in pairs])
    logits = last_logits(model, batch, min(width + 1, batch.max_length), n_used)
    scores = []
    for row, (_, continuation) in zip(logits, pairs, strict=True):
        used = row[-len(continuation) - 1 : -1].double()
        wanted = torch.tensor(continuation, device=used.device)
        if int(wanted.max()) >= used.shape[-1]:
            raise ConfigError(
                f"token {int(wanted.max())} is outside of the model's vocabulary of "
                f"{used.shape[-1]}; use the model's own tokenizer"
            )
        log_probs = functional.log_softmax(used, -1).gather(-1, wanted[:, None]).sum()
        scores.append((float(log_probs), bool((used.argmax(-1) == wanted).all())))
    return scores
