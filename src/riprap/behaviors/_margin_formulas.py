"""Margins as pure functions of logits (formulas: "Margins"); above 0 the probe still behaves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Margins:
    """What a margin function may return in place of a bare tensor.

    Attributes:
        values: shape (n_probes,), attached to the graph.
        insufficient: why these numbers do not measure the behaviour; empty where they do.
    """

    values: Tensor
    insufficient: str = ""


def token_margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Logit of the target − the largest other logit.

    Args:
        logits: shape (n, vocabulary).
        targets: shape (n,), long.

    Returns:
        shape (n,), in logits; above 0 exactly where the arg max is the target.
    """
    right = logits.gather(-1, targets[:, None])
    others = logits.scatter(-1, targets[:, None], float("-inf"))
    return right.squeeze(-1) - others.amax(-1)


def opening_margin(logits: Tensor, openers: Tensor) -> Tensor:
    """Largest logit among `openers` − the largest logit among all other tokens.

    Args:
        logits: shape (n, vocabulary), at the first position of the response.
        openers: shape (k,), long: token ids with which the behaviour begins.

    Returns:
        shape (n,), in logits; above 0 exactly where greedy decoding begins with an opener.
    """
    others = logits.index_fill(-1, openers, float("-inf"))
    return logits[:, openers].amax(-1) - others.amax(-1)


def continuation_log_probs(logits: Tensor, continuation: Tensor, mask: Tensor) -> Tensor:
    """Mean log-probability per token of right-aligned continuations.

    Args:
        logits: shape (n, K + 1, vocabulary): the positions that predict the continuation, and the
            last one, whose prediction is not used.
        continuation: shape (n, K), long; its padding lies on the left.
        mask: shape (n, K), 1 on real tokens.

    Returns:
        shape (n,), nats per token.
    """
    used = logits[:, :-1]
    chosen = used.gather(-1, continuation[..., None]).squeeze(-1)
    taken = chosen - used.logsumexp(-1)  # a log-softmax of which one entry a row is needed
    return (taken * mask).sum(-1) / mask.sum(-1)


def best_against_best(log_probs: Tensor, wanted: Tensor) -> Tensor:
    """Best wanted continuation − best unwanted one (contrast and choice margins).

    Args:
        log_probs: shape (n, options).
        wanted: shape (n, options) or (options,), bool.

    Returns:
        shape (n,), nats per token.
    """
    lowest = torch.finfo(log_probs.dtype).min
    keep = log_probs.masked_fill(~wanted, lowest).amax(-1)
    lose = log_probs.masked_fill(wanted, lowest).amax(-1)
    return keep - lose
