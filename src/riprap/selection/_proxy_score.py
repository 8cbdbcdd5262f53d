"""Errors at the last hidden state: what a sample's gradient is like, without a backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from riprap.errors import ConfigError
from riprap.linalg import widened
from riprap.selection._row_losses import IGNORED, RowLosses, part, targets_of

SKETCH = 64  # dimensions that the head's rows are projected to where they have more


def error_norms(
    model: nn.Module, output: Any, given: Mapping[str, Any]
) -> tuple[RowLosses, Tensor]:
    """Each row's loss, and ‖∂L_i/∂h‖_F over its response tokens, shapes (rows,).

    ∂L_i/∂h_t = (softmax(z_t) − onehot(y_t)) W_head / n_i. The head's rows are projected to 64
    fixed random dimensions (Johnson-Lindenstrauss), which keeps a norm over many tokens within a
    few hundredths, and a step within its price. One softmax serves the loss as well.

    Raises:
        ConfigError: there are no logits or labels to read, or no head.
    """
    logits, labels = part(output, "logits"), given.get("labels")
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
        raise ConfigError(
            "proxy reads logits, and labels given to the model along with its inputs; where a "
            "trainer keeps either to itself (TRL's fused head) take moderate"
        )
    targets = (
        labels[:, None] if labels.dim() == 1 else targets_of(labels, given.get("shift_labels"))
    )
    logits = logits[:, None] if logits.dim() == 2 else logits
    head = _sketch(model, logits)
    found = [_row(own, aim, head) for own, aim in zip(logits, targets, strict=True)]
    losses, norms = (torch.stack(values) for values in zip(*found, strict=True))
    return RowLosses(losses, (targets != IGNORED).sum(1)), norms


def _row(logits: Tensor, targets: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    counted = targets != IGNORED
    if not counted.all():
        logits, targets = logits[counted], targets[counted]
    count = max(len(targets), 1)
    errors = torch.softmax(widened(logits), -1)
    chosen = errors.gather(1, targets[:, None])
    loss = -chosen.clamp_min(torch.finfo(errors.dtype).tiny).log().sum() / count
    errors.scatter_add_(1, targets[:, None], torch.full_like(chosen, -1.0))
    return loss, torch.linalg.vector_norm(errors @ head) / count


def _sketch(model: nn.Module, logits: Tensor) -> Tensor:
    """W_head, shape (vocabulary, at most 64)."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    if head is None or len(head.weight) != logits.shape[-1]:
        linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
        linears = [m for m in linears if m.out_features == logits.shape[-1]]
        if not linears:
            raise ConfigError(
                f"proxy found no linear head of {logits.shape[-1]} outputs: take moderate"
            )
        head = linears[-1]
    weight = widened(head.weight.detach())
    if weight.shape[1] <= SKETCH:
        return weight
    noise = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (weight.shape[1], SKETCH), generator=noise).to(weight) * 2 - 1
    return weight @ signs / SKETCH**0.5
