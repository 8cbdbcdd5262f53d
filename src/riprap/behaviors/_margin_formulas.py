"""Margins as pure functions of logits. A margin above 0 means that the probe passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, repr=False)
class Margins:
    """Margins with a statement on whether they measure the behavior.

    A margin function may return it in place of a bare tensor.

    Attributes:
        values: shape (n_probes,), attached to the graph.
        insufficient: why the values do not measure the behavior; empty where they do.
        evidence: numbers that `insufficient` depends on, one for each probe; None if there are
            none. See `MarginFunction.insufficiency`.
    """

    values: Tensor
    insufficient: str = ""
    evidence: Tensor | None = None

    def __repr__(self) -> str:
        why = f", insufficient={self.insufficient!r}" if self.insufficient else ""
        return f"Margins(shape {tuple(getattr(self.values, 'shape', ()))}{why})"


def token_margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the logit of the target − the largest other logit, shape (n,).

    From logits of shape (n, vocabulary); above 0 exactly where the arg max is the target.
    """
    right = logits.gather(-1, targets[:, None])
    others = logits.scatter(-1, targets[:, None], float("-inf"))
    return right.squeeze(-1) - others.amax(-1)


def continuation_log_probs(logits: Tensor, continuation: Tensor, mask: Tensor) -> Tensor:
    """Return the mean log-probability per token of right-aligned continuations, shape (n,), nats.

    Args:
        logits: shape (n, K + 1, vocabulary): the positions that predict the continuation, and the
            last position, which is not used.
        continuation, mask: shape (n, K): token ids, and 1 on real tokens.
    """
    used = logits[:, :-1]
    chosen = used.gather(-1, continuation[..., None]).squeeze(-1)
    log_probs = chosen - used.logsumexp(-1)  # a log-softmax of which one entry a row is needed
    return (log_probs * mask).sum(-1) / mask.sum(-1)


def preference_margin(log_probs: Tensor, is_correct: Tensor) -> Tensor:
    """Return the best correct option − the best other one, shape (n,), from (n, options)."""
    lowest = torch.finfo(log_probs.dtype).min
    chosen = log_probs.masked_fill(~is_correct, lowest).amax(-1)
    rejected = log_probs.masked_fill(is_correct, lowest).amax(-1)
    return chosen - rejected
