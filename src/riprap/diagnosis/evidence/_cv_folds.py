"""Rows that are to be told apart: their classes, and who judges whom in cross-validation."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from riprap.behaviors import Behavior
from riprap.errors import BehaviorError

MIN_ROWS_PER_CLASS = 2  # rows of a class that a probe is fitted on, on average


def class_labels(
    behavior: Behavior, labels: Sequence[int] | Tensor | None, contrast: Behavior | None
) -> Tensor:
    """The class of each row, from 0 without gaps."""
    if labels is not None and contrast is not None:
        raise BehaviorError(f"behaviour {behavior.name!r}: give labels or a contrast, and not both")
    n = len(behavior.probes)
    if contrast is not None:
        given = torch.tensor([0] * n + [1] * len(contrast.probes))
    elif labels is not None:
        given = torch.as_tensor(labels)
    elif behavior.margins.targets is not None:
        given = behavior.margins.targets
    else:
        raise BehaviorError(
            f"behaviour {behavior.name!r} has no classes of its own: give labels or a contrast"
        )
    if given.shape != (n + (0 if contrast is None else len(contrast.probes)),):
        raise BehaviorError(
            f"behaviour {behavior.name!r}: {n} probes and labels of shape {tuple(given.shape)}; "
            f"expected ({n},)"
        )
    return given.cpu().unique(return_inverse=True)[1]


def insufficient_rows(classes: Tensor, count: int, folds: int) -> str:
    """Why nothing could be learned from so few rows; empty where there are enough."""
    if count < 2:
        return "all probes are of one class: give labels, or a contrast"
    each = len(classes) / count * (folds - 1) / folds
    if each < MIN_ROWS_PER_CLASS:
        return (
            f"{len(classes)} rows in {count} classes: a probe is fitted on {each:.1f} rows of a "
            f"class, and {MIN_ROWS_PER_CLASS} are needed"
        )
    return ""


def row_groups(
    behaviors: Sequence[Behavior], groups: Sequence[Hashable] | None, n: int
) -> list[Hashable]:
    """What each row is about; None: equal prompts are about the same."""
    if groups is not None:
        if len(groups) != n:
            raise BehaviorError(f"{len(groups)} groups for {n} rows; give one a row")
        return list(groups)
    rows = [behavior.token_rows() for behavior in behaviors]
    if any(part is None for part in rows):
        return list(range(n))
    return [tuple(row) for part in rows if part is not None for row in part]


def stratified_group_folds(
    classes: Tensor, groups: list[Hashable], folds: int, noise: np.random.Generator
) -> Tensor:
    """The fold of each row: class by class, groups in random order are dealt out in turn."""
    order = noise.permutation(len(groups)).tolist()
    folded: dict[Hashable, int] = {}
    for row in sorted(order, key=lambda row: int(classes[row])):
        folded.setdefault(groups[row], len(folded) % folds)
    return torch.tensor([folded[group] for group in groups])
