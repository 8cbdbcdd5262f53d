"""The training that a prediction is about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

LossFn = Callable[[nn.Module, Any], Tensor]  # loss(model, batch) -> each row's loss, shape (rows,)


@dataclass
class Training:
    """A training run that has not begun, on a model that may be trained.

    Attributes:
        model: the model; the warm start trains it.
        optimizer: torch optimizer of the model's trainable parameters.
        take_step: takes one step of the training, at the rates that the optimizer has.
        schedule: planned rate of each step, relative to the base rates of the optimizer's groups
            (`base_rate`), shape (steps,).
        batches: rows to predict the harm of, in batches; the model gets them by name, by position
            or as one tensor.
        rows: number of each of these rows in the data set, in the order of the batches.
        n_rows: number of rows of the data set.
        rows_per_step: rows from which one step learns.
        loss: each row's own loss; None: the model's, over the tokens of `labels`.
        max_grad_norm: norm to which the gradient of a step is clipped; None: it is not clipped.
    """

    model: nn.Module
    optimizer: Optimizer
    take_step: Callable[[], None]
    schedule: np.ndarray
    batches: Sequence[Any]
    rows: np.ndarray
    n_rows: int
    rows_per_step: int
    loss: LossFn | None = None
    max_grad_norm: float | None = None
