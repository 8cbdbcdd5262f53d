"""Errors at the last hidden state: a proxy for gradient norms, without a backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from riprap.errors import ConfigError
from riprap.linalg import upcast
from riprap.selection._row_losses import IGNORE_INDEX, RowLosses, next_token_targets, output_field

PROJECTION_DIM = 64  # of the head's rows, if they have more dimensions


def error_norms(
    model: nn.Module, output: Any, inputs: Mapping[str, Any]
) -> tuple[RowLosses, Tensor]:
    """Compute each row's loss, and ‖∂L_i/∂h‖_F over its response tokens, shapes (rows,).

    ∂L_i/∂h_t = (softmax(z_t) − onehot(y_t)) W_head / n_i. The head's rows are projected to 64
    fixed random dimensions (Johnson-Lindenstrauss). This changes a norm over many tokens by a few
    percent and keeps the step cheap. Loss and error share one softmax.

    Raises:
        ConfigError: there are no logits or labels, or the model has no linear head.
    """
    logits, labels = output_field(output, "logits"), inputs.get("labels")
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
        raise ConfigError(
            "proxy reads logits, and labels given to the model along with its inputs; if the "
            "trainer hides either (TRL's fused head), use moderate"
        )
    if labels.dim() == 1:
        targets = labels[:, None]
    else:
        targets = next_token_targets(labels, inputs.get("shift_labels"))
    logits = logits[:, None] if logits.dim() == 2 else logits
    head = _projected_head(model, logits)
    rows = [_loss_and_error_norm(*row, head) for row in zip(logits, targets, strict=True)]
    losses, norms = (torch.stack(values) for values in zip(*rows, strict=True))
    return RowLosses(losses, (targets != IGNORE_INDEX).sum(1)), norms


def _loss_and_error_norm(logits: Tensor, targets: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    counted = targets != IGNORE_INDEX
    if not counted.all():
        logits, targets = logits[counted], targets[counted]
    count = max(len(targets), 1)
    errors = torch.softmax(upcast(logits), -1)
    target_probs = errors.gather(1, targets[:, None])
    loss = -target_probs.clamp_min(torch.finfo(errors.dtype).tiny).log().sum() / count
    errors.scatter_add_(1, targets[:, None], torch.full_like(target_probs, -1.0))
    return loss, torch.linalg.vector_norm(errors @ head) / count


def _projected_head(model: nn.Module, logits: Tensor) -> Tensor:
    """Return W_head, projected; shape (vocabulary, at most 64)."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    if head is None or len(head.weight) != logits.shape[-1]:
        n_outputs = logits.shape[-1]
        linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
        linears = [m for m in linears if m.out_features == n_outputs]
        if not linears:
            raise ConfigError(
                f"proxy needs a linear head of {n_outputs} outputs, and the model has none: use "
                "moderate"
            )
        head = linears[-1]
    weight = upcast(head.weight.detach())
    if weight.shape[1] <= PROJECTION_DIM:
        return weight
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (weight.shape[1], PROJECTION_DIM), generator=generator)
    return weight @ (bits.to(weight) * 2 - 1) / PROJECTION_DIM**0.5
