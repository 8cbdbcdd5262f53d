"""Token ids from users, checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import index
from typing import Any

import torch
from torch import Tensor

from riprap.errors import BehaviorError

TOKEN_ID_LIMIT = 2**31  # larger than any vocabulary


def parse_token_rows(rows: Iterable[Any], what: str = "probe") -> list[list[int]]:
    """Return rows of token ids as lists.

    Args:
        rows: shape (n, T), or n sequences of any lengths.
        what: name of a row in error messages.

    Raises:
        BehaviorError: an id is not an integer, or outside the range of token ids.
    """
    try:
        lists = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
        parsed = [[index(part) for part in row] for row in lists]
    except TypeError as error:
        raise BehaviorError(f"each {what} must be a list of integer token ids: {error}") from error
    for number, row in enumerate(parsed):
        if row and not 0 <= min(row) <= max(row) < TOKEN_ID_LIMIT:
            wrong = min(row) if min(row) < 0 else max(row)
            raise BehaviorError(f"{what} {number} contains {wrong}, which is not a token id")
    return parsed


def parse_targets(targets: Tensor | Sequence[int]) -> Tensor:
    """Return targets as a tensor of integers, in the shape that was given."""
    try:
        parsed = torch.as_tensor(targets)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise BehaviorError(f"targets must be token ids, one for each probe: {error}") from error
    if parsed.numel() and (parsed.is_floating_point() or parsed.is_complex()):
        raise BehaviorError(f"targets must be integer token ids, got {parsed.dtype}")
    return parsed.long()


@contextmanager
def explain_index_errors(ids: Tensor) -> Iterator[None]:
    """Turn the IndexError of a model without a row for a token or position into a BehaviorError."""
    try:
        yield
    except IndexError as error:
        raise BehaviorError(
            f"the model cannot read probes of {ids.shape[1]} tokens with ids up to "
            f"{int(ids.max())}: its vocabulary or its context is smaller ({error}); use the "
            "model's own tokenizer"
        ) from error
