"""The model's answers to probes, as far as the pass shows them that computes the margins.

A pass over prompt and expected answers predicts each of their tokens. So it shows how the model's
greedy response begins: as long as it follows an expected answer, and the first token after that.
Margin functions note it while somebody collects it; no further pass is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from riprap._text import error_text

Answers = list[list[int]]  # token ids of the beginning of each probe's answer


@dataclass
class AnswerNotes:
    """Answers that margin functions noted, in the order of the probes.

    Attributes:
        error: why answers could not be read; empty where they were.
    """

    rows: Answers = field(default_factory=list)
    error: str = ""


_NOTES: AnswerNotes | None = None


@contextmanager
def collect_answers(wanted: bool = True) -> Iterator[AnswerNotes]:
    """Collect the answers of margins that are computed inside.

    Args:
        wanted: False: collect nothing, at no cost.
    """
    global _NOTES
    before, notes = _NOTES, AnswerNotes()
    _NOTES = notes if wanted else None
    try:
        yield notes
    finally:
        _NOTES = before


def note_answers(read: Callable[[], Answers]) -> None:
    """Note the answers that `read` returns, if they are collected; its failure fails no margin."""
    if _NOTES is None:
        return
    try:
        _NOTES.rows += read()
    except Exception as error:  # noqa: BLE001 a text for the reader must not cost a measurement
        _NOTES.error = error_text(error)


def followed_answers(logits: Tensor, continuation: Tensor, mask: Tensor, n_options: int) -> Answers:
    """Return the beginning of the answer to each prompt, along the option that it follows longest.

    Args:
        logits: shape (rows, K + 1, vocabulary): the positions that predict the continuation, and
            the last position, which is not used.
        continuation, mask: shape (rows, K): right-aligned token ids, and 1 on real tokens.
        n_options: number of rows of a probe.
    """
    predicted = logits[:, :-1].argmax(-1)
    padding = (1 - mask.long()).sum(-1)
    follows = (predicted == continuation) | ~mask.bool()
    n_equal = follows.long().cumprod(-1).sum(-1) - padding
    best = n_equal.view(-1, n_options).argmax(-1)
    chosen = (best + n_options * torch.arange(len(best), device=best.device)).tolist()
    starts, counts, tokens = padding.tolist(), n_equal.tolist(), predicted.tolist()
    return [tokens[row][starts[row] : starts[row] + counts[row] + 1] for row in chosen]
