"""Audit of rows with low, moderate and high gradient: format, length, loss and direction."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.continual.measure import StageMeter, linear_weights
from experiments.worlds.continual import CATEGORIES
from experiments.worlds.continual_rows import IGNORED, Rows
from riprap.selection import gradient_norms

AUDITED_ROWS = 240  # of a task
SHARE = 0.2


@dataclass(frozen=True)
class Group:
    """A fifth of the rows of a task at one step of its stage.

    Attributes:
        task, step: where in the plain run; `group`: low, moderate or high gradient norm.
        categories: share of rows by category.
        tokens: mean number of response tokens; `loss`: mean over rows of each one's own mean loss,
            in nats a token; `norm`: mean norm of a row's gradient in the adapter.
        topk, whole: cosine of the group's descent direction, in all linear weights, with the way
            back to the pretrained model (2604.17215, eq. 9, and over all coordinates).
    """

    task: str
    step: int
    group: str
    categories: dict[str, float]
    tokens: float
    loss: float
    norm: float
    topk: float
    whole: float


def audit(model: Any, rows: Rows, measure: StageMeter, task: str, step: int) -> list[Group]:
    """Audit the fifths of rows with lowest, nearest-to-median and highest gradient.

    Args:
        model: a PEFT model during training, which is not affected.
        rows: of which the same `AUDITED_ROWS` are audited for each step.
    """
    generator = torch.Generator().manual_seed(step)
    rows = rows[torch.randperm(len(rows), generator=generator)[:AUDITED_ROWS]]
    norms = gradient_norms(model, rows.batch)
    plain = copy.deepcopy(model).merge_and_unload().eval()
    for parameter in plain.parameters():
        parameter.requires_grad_(False)
    weights = linear_weights(plain)
    for weight in weights:
        weight.requires_grad_(True)
    audited = []
    for name, chosen in groups(norms).items():
        own = rows[chosen]
        losses = _losses(plain, own)
        gradient = torch.autograd.grad(losses.mean(), weights)
        shares = own.category.bincount(minlength=len(CATEGORIES)) / len(own)
        audited.append(
            Group(
                task,
                step,
                name,
                dict(zip(CATEGORIES, shares.tolist(), strict=True)),
                float(own.response_tokens.float().mean()),
                float(losses.mean()),
                float(norms[chosen].mean()),
                **measure.towards([-part for part in gradient]),
            )
        )
    return audited


def groups(norms: Tensor, share: float = SHARE) -> dict[str, Tensor]:
    """Return the indices of the rows with lowest, nearest-to-median and highest norms.

    Args:
        norms: shape (n,).
    """
    count = max(1, int(share * len(norms)))
    distance = (norms - norms.median()).abs()
    return {
        "low": norms.argsort()[:count],
        "moderate": distance.argsort()[:count],
        "high": norms.argsort(descending=True)[:count],
    }


def _losses(model: nn.Module, rows: Rows) -> Tensor:
    """Return each row's mean loss over its response tokens, shape (n,)."""
    batch = rows.batch
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:]
    each = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )
    return each.sum(1) / (labels != IGNORED).sum(1)
