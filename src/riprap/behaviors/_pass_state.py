"""State of the current pass over probes, for hooks: which of its tokens are whose last.

Plain globals: compiled models trace the hooks that read them, and a context variable would break
their graphs at each layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

AutocastState: TypeAlias = bool | torch.dtype

_IN_PREFIX_PASS = False
_IN_COMPARISON = False
_RIGHT_PADDING: Tensor | None = None
_TOKEN_MASK: Tensor | None = None
_INNER_AUTOCAST: AutocastState | None = None


def in_prefix_pass() -> bool:
    """Return whether the current pass is one whose outputs hooks must ignore."""
    return _IN_PREFIX_PASS


def in_comparison() -> bool:
    """Return whether the current pass is only compared with another one."""
    return _IN_COMPARISON


@contextmanager
def prefix_pass() -> Iterator[None]:
    """Mark passes over shared prefixes, whose last positions are not those of probes."""
    global _IN_PREFIX_PASS
    before, _IN_PREFIX_PASS = _IN_PREFIX_PASS, True
    try:
        yield
    finally:
        _IN_PREFIX_PASS = before


@contextmanager
def comparison() -> Iterator[None]:
    """Mark passes that are only compared, and build no graph."""
    global _IN_COMPARISON
    before, _IN_COMPARISON = _IN_COMPARISON, True
    try:
        with torch.no_grad(), prefix_pass():
            yield
    finally:
        _IN_COMPARISON = before


@contextmanager
def right_padded(padding: Tensor) -> Iterator[None]:
    """Mark a pass over rows that end with `padding` tokens each, shape (n,)."""
    global _RIGHT_PADDING
    before, _RIGHT_PADDING = _RIGHT_PADDING, padding
    try:
        yield
    finally:
        _RIGHT_PADDING = before


@contextmanager
def masked_tokens(mask: Tensor) -> Iterator[None]:
    """Mark a pass whose attention mask does not show which tokens are padding; shape (n, T)."""
    global _TOKEN_MASK
    before, _TOKEN_MASK = _TOKEN_MASK, mask
    try:
        yield
    finally:
        _TOKEN_MASK = before


def token_mask() -> Tensor | None:
    """Return which tokens of the current pass are no padding, shape (n, T); None if not marked."""
    return _TOKEN_MASK


@contextmanager
def inner_autocast(state: AutocastState) -> Iterator[None]:
    """Mark passes whose autocast state is set inside of the model, where callers do not see it."""
    global _INNER_AUTOCAST
    before, _INNER_AUTOCAST = _INNER_AUTOCAST, state
    try:
        yield
    finally:
        _INNER_AUTOCAST = before


def pass_autocast(device_type: str) -> AutocastState:
    """Return the autocast state of the current pass: its dtype, or False."""
    if _INNER_AUTOCAST is not None:
        return _INNER_AUTOCAST
    available = torch.amp.is_autocast_available(device_type)
    enabled = available and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if enabled else False


def end_aligned(output: Tensor) -> Tensor:
    """Return a module's output with the last token of each probe at position −1.

    Outputs of shape (rows, d) and those of passes without right padding are returned unchanged.
    """
    padding = _RIGHT_PADDING
    if padding is None or output.dim() != 3 or len(output) != len(padding):
        return output
    positions = torch.arange(output.shape[1], device=output.device)
    index = (positions - padding.to(output.device)[:, None]) % output.shape[1]
    return output.gather(1, index[..., None].expand_as(output))
