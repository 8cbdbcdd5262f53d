"""Logits that the answers to probes are read from, attached to the graph."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from riprap.behaviors import Behavior, end_aligned, in_prefix_pass, logits_of
from riprap.errors import BehaviorError


def answer_logits(behavior: Behavior, model: nn.Module) -> Tensor:
    """Compute the logits that the model's answers are read from.

    Call it inside `preserve_training_state`. For margins of the response's first token, these are
    the last position of each probe; for margins of continuations, each token of the correct ones;
    for a plain margin function, the last position of each call of the model. Padding is left out.

    Returns:
        shape (positions, vocabulary), in at least float32.

    Raises:
        BehaviorError: a plain margin function's model returned no logits.
    """
    logits = behavior.margins.answer_logits(model, behavior.probes)
    if logits is not None:
        return logits
    captured = _captured_logits(behavior, model)
    if not captured or len({part.shape[-1] for part in captured}) > 1:
        raise BehaviorError(
            f"behavior {behavior.name!r}: no logits were captured; its margin function must call "
            "the model itself and get a tensor of shape (n, vocabulary) or (n, T, vocabulary)"
        )
    return torch.cat(captured)


def _captured_logits(behavior: Behavior, model: nn.Module) -> list[Tensor]:
    """Return the logits at the last position of each call that the margin function makes."""
    captured: list[Tensor] = []

    def capture(_module: nn.Module, _inputs: Any, output: Any) -> None:
        with suppress(BehaviorError):  # the caller refuses a model without logits
            logits = logits_of(output)
            if logits.dim() in (2, 3) and not in_prefix_pass():
                last = end_aligned(logits)[:, -1] if logits.dim() == 3 else logits
                captured.append(last.float() if last.dtype.itemsize < 4 else last)

    handle = model.register_forward_hook(capture)
    try:
        behavior.margins(model, behavior.probes)
    finally:
        handle.remove()
    return captured
