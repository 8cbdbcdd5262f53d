"""Class labels, groups and folds for cross-validated linear probes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from riprap.behaviors import Behavior
from riprap.errors import BehaviorError

MIN_ROWS_PER_CLASS = 2  # in the training folds, on average


def class_labels(
    behavior: Behavior, labels: Sequence[int] | Tensor | None, contrast: Behavior | None
) -> Tensor:
    """Return the class of each row, from 0 without gaps."""
    if labels is not None and contrast is not None:
        raise BehaviorError(f"behavior {behavior.name!r}: pass labels or a contrast, not both")
    n = len(behavior.probes)
    n_contrast = 0 if contrast is None else len(contrast.probes)
    if contrast is not None:
        classes = torch.tensor([0] * n + [1] * n_contrast)
    elif labels is not None:
        classes = torch.as_tensor(labels)
    elif behavior.margins.targets is not None:
        classes = behavior.margins.targets
    else:
        raise BehaviorError(
            f"behavior {behavior.name!r} has no classes of its own: pass labels or a contrast"
        )
    if classes.shape != (n + n_contrast,):
        raise BehaviorError(
            f"behavior {behavior.name!r}: {n} probes and labels of shape {tuple(classes.shape)}; "
            f"expected ({n},)"
        )
    return classes.cpu().unique(return_inverse=True)[1]


def insufficient_rows(classes: Tensor, count: int, folds: int) -> str:
    """Return why there are too few rows to fit a probe; empty if there are enough."""
    if count < 2:
        return "all probes are of one class: pass labels, or a contrast"
    per_class = len(classes) / count * (folds - 1) / folds
    if per_class < MIN_ROWS_PER_CLASS:
        return (
            f"{len(classes)} rows in {count} classes: a linear probe is fitted on {per_class:.1f} "
            f"rows per class, and {MIN_ROWS_PER_CLASS} are needed"
        )
    return ""


def row_groups(
    behaviors: Sequence[Behavior], groups: Sequence[Hashable] | None, n: int
) -> list[Hashable]:
    """Return the group of each row; by default, equal prompts are a group."""
    if groups is not None:
        if len(groups) != n:
            raise BehaviorError(f"{len(groups)} groups for {n} rows; pass one per row")
        return list(groups)
    rows = [behavior.token_rows() for behavior in behaviors]
    if any(part is None for part in rows):
        return list(range(n))
    return [tuple(row) for part in rows if part is not None for row in part]


def stratified_group_folds(
    classes: Tensor, groups: list[Hashable], folds: int, noise: np.random.Generator
) -> Tensor:
    """Return the fold of each row: class by class, groups in random order are dealt in turn."""
    order = noise.permutation(len(groups)).tolist()
    fold_of: dict[Hashable, int] = {}
    for row in sorted(order, key=lambda row: int(classes[row])):
        fold_of.setdefault(groups[row], len(fold_of) % folds)
    return torch.tensor([fold_of[group] for group in groups])
