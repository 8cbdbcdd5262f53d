"""Comparison of two ways to compute the same logits: a faster one is used only if they agree.

Rounding of half precision is as large as a small fault. So a model that computes under autocast,
with weights in float32, is compared without autocast too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from riprap.behaviors._model_io import device_of
from riprap.behaviors._pass_state import comparison, pass_autocast

N_COMPARED = 4  # probes that stand for all probes of a pass
FULL = (torch.float32, torch.float64)
HALF = (torch.float16, torch.bfloat16)
TOLERANCE, TOLERANCE_HALF = 1e-3, 5e-2  # of the largest logit


def length_class(length: int) -> int:
    """Return a class of lengths: up to the next power of two, where windows of attention end."""
    return (length - 1).bit_length()


def few(lengths: Sequence[int]) -> list[int]:
    """Choose the indices of a few probes that stand for all: the longest, the shortest, others."""
    n = len(lengths)
    if n <= N_COMPARED:
        return list(range(n))
    ends = {lengths.index(max(lengths)), lengths.index(min(lengths))}
    others = [index * n // N_COMPARED for index in range(N_COMPARED)]
    return sorted([*ends, *[at for at in others if at not in ends][: N_COMPARED - len(ends)]])


def attempt(run: Callable[[], Tensor | None]) -> Tensor | None:
    """Return the result of a trial; None where the model cannot do it, for whatever reason."""
    try:
        return run()
    except Exception:  # noqa: BLE001 models differ; full rows show an error of the model itself
        return None


def precision_of(model: nn.Module) -> Any:
    """Return the autocast state in which the model computes now."""
    return pass_autocast(device_of(model).type)


def results_agree(
    model: nn.Module,
    found: Callable[[], Tensor | None],
    expected: Callable[[], Tensor],
    n_used: Tensor | None = None,
) -> bool:
    """Return whether two ways to compute the same logits differ by rounding only.

    Args:
        found, expected: compute logits of shape (rows, positions, vocabulary); what `expected`
            raises is raised.
        n_used: shape (rows,), how many of the last positions are compared; None: all.
    """
    full = all(p.dtype in FULL for p in model.parameters())
    with comparison():
        with _half_outputs() as halves:
            wanted = expected()
        if not _agree(attempt(found), wanted, n_used, full and not halves):
            return False
        kind = device_of(model).type
        available = torch.amp.is_autocast_available(kind)
        if not (full and available and torch.is_autocast_enabled(kind)):
            return True
        with torch.autocast(kind, enabled=False), _half_outputs() as halves:
            precise = attempt(expected)  # some kinds of attention need half precision
            return precise is None or _agree(attempt(found), precise, n_used, not halves)


def _agree(found: Tensor | None, expected: Tensor, n_used: Tensor | None, precise: bool) -> bool:
    if found is None or found.shape != expected.shape:
        return False
    if n_used is not None:
        backward = torch.arange(expected.shape[1], 0, -1, device=expected.device)
        compared = backward <= n_used.to(expected.device)[:, None]
        found, expected = found[compared], expected[compared]
    tolerance = TOLERANCE if precise else TOLERANCE_HALF
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@contextmanager
def _half_outputs() -> Iterator[set[torch.dtype]]:
    """Collect the half precisions in which modules compute, however they were chosen."""
    seen: set[torch.dtype] = set()

    def note(_module: nn.Module, _arguments: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dtype in HALF:
            seen.add(output.dtype)

    handle = register_module_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
