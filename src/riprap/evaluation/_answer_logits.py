"""What the model answers on the probes: logits at the positions that count, in the graph."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from riprap.behaviors import Behavior, Options, last_logits, logits_of, reading_ahead
from riprap.errors import BehaviorError


def answers(behavior: Behavior, model: nn.Module) -> Tensor:
    """Logits with which the model answers a behaviour's probes; to be called inside `no_trace`.

    Of probes that end where the response begins, those of the response's first token; of
    teacher-forced ones, those of each token of the continuations that the behaviour wants; of
    custom probes, those at the last position of each call of the model. Padding has none.

    Returns:
        shape (positions, vocabulary), in at least float32.

    Raises:
        BehaviorError: a custom margin's model gave no logits.
    """
    probes = behavior.probes
    if hasattr(behavior.margins, "from_logits"):
        return last_logits(model, probes)[:, -1]
    if isinstance(probes, Options):
        width, options = probes.continuation.shape[1], probes.wanted.shape[1]
        logits = last_logits(model, probes.batch, width + 1, probes.mask.sum(-1) + 1, options)
        counted = probes.mask.bool() & probes.wanted.reshape(-1, 1)
        return logits[:, :-1][counted.to(logits.device)]
    seen = _seen(behavior, model)
    if not seen or len({part.shape[-1] for part in seen}) > 1:
        raise BehaviorError(
            f"behaviour {behavior.name!r}: no logits were seen; its margin must call the model "
            "itself, and get a tensor of shape (n, vocabulary) or (n, T, vocabulary)"
        )
    return torch.cat(seen)


def _seen(behavior: Behavior, model: nn.Module) -> list[Tensor]:
    """Logits at the last position of each call that the margin makes."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        with suppress(BehaviorError):  # a model of another kind is refused by the caller
            logits = logits_of(output)
            if logits.dim() in (2, 3) and not reading_ahead():
                last = logits[:, -1] if logits.dim() == 3 else logits
                seen.append(last.float() if last.dtype.itemsize < 4 else last)

    handle = model.register_forward_hook(keep)
    try:
        behavior.margins(model, behavior.probes)
    finally:
        handle.remove()
    return seen
