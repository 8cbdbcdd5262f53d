"""Token ids that somebody hands in: whole numbers that some vocabulary may have, or an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import index
from typing import Any

import torch
from torch import Tensor

from riprap.errors import BehaviorError

MOST = 2**31  # no vocabulary is as large


def token_rows(rows: Iterable[Any], what: str = "probe") -> list[list[int]]:
    """Rows of token ids as lists.

    Args:
        rows: shape (n, T), or n sequences of any lengths.
        what: how an error calls a row.

    Raises:
        BehaviorError: an id is no whole number, or none that a vocabulary could have.
    """
    try:
        found = [[index(part) for part in _plain(row)] for row in rows]
    except TypeError as error:
        raise BehaviorError(f"a {what} is token ids, which are whole numbers: {error}") from error
    for number, row in enumerate(found):
        if row and not 0 <= min(row) <= max(row) < MOST:
            odd = min(row) if min(row) < 0 else max(row)
            raise BehaviorError(f"{what} {number} holds {odd}, which is no token id")
    return found


def token_targets(targets: Tensor | Sequence[int]) -> Tensor:
    """Targets as a tensor of whole numbers, of the shape that was given.

    Raises:
        BehaviorError: they are none.
    """
    try:
        found = torch.as_tensor(targets)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise BehaviorError(f"targets are token ids, one a probe: {error}") from error
    if found.numel() and (found.is_floating_point() or found.is_complex()):
        raise BehaviorError(f"targets are token ids, whole numbers, and not {found.dtype}")
    return found.long()


def _plain(row: Any) -> Any:
    return row.tolist() if hasattr(row, "tolist") else row


@contextmanager
def readable(ids: Tensor) -> Iterator[None]:
    """A model that has no row for a token or a position says so by an IndexError, and not why.

    Args:
        ids: those of the probes, shape (n, T).

    Raises:
        BehaviorError: it said so.
    """
    try:
        yield
    except IndexError as error:
        raise BehaviorError(
            f"the model cannot read probes of {ids.shape[1]} tokens with ids up to "
            f"{int(ids.max())}: its vocabulary or its context is smaller ({error}); is this the "
            "model's own tokenizer?"
        ) from error
