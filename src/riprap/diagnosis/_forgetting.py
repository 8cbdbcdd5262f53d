"""Continual-learning metrics of tasks that were learned one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riprap.errors import ConfigError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Forgetting:
    """What a sequence of T stages kept of its tasks. All in the unit of the matrix.

    Attributes:
        average: mean over stages of the mean over all T tasks, those still to come included.
        backward_transfer: BWT, mean over j < T of a_{T,j} − a_{j,j}; below 0 is forgetting.
        forgetting: FM, mean over j < T of max_{t<T} a_{t,j} − a_{T,j}; above 0 is forgetting.
        max_drop: the largest fall of a task in a single stage, 0 where none fell.
        interference: I_{t,j} = a_{t,j} − a_{t−1,j}, shape (stages compared, T): row by row what a
            stage did to every task. Its first row is stage 1's where `start` was given, else
            stage 2's.
        total_interference: the sum of all I_{t,j}, what was newly learned included.
    """

    average: float
    backward_transfer: float
    forgetting: float
    max_drop: float
    interference: Array
    total_interference: float


def forgetting(accuracy_matrix: Any, start: Sequence[float] | Array | None = None) -> Forgetting:
    """Metrics of a sequence of tasks from how well each was done after each stage.

    Args:
        accuracy_matrix: shape (T, T), T ≥ 2: row t is the state after stage t, column j the task
            that stage j trains; any score of which more is better.
        start: shape (T,), the same before the first stage.

    Source: Lopez-Paz and Ranzato, 1706.08840 (BWT); Chaudhry et al., 1801.10112 (forgetting), here
    with the maximum over all stages before the last.

    Raises:
        ConfigError: another shape, or a number that is missing: a metric over half a matrix would
            look like one over all of it.
    """
    a = _numbers("accuracy_matrix", accuracy_matrix)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or len(a) < 2:
        raise ConfigError(
            f"accuracy_matrix has shape {a.shape}; one row a stage and one column a task are "
            "needed, equally many, two or more"
        )
    rows = a
    if start is not None:
        before = _numbers("start", start)
        if before.shape != (len(a),):
            raise ConfigError(f"start has shape {before.shape}; one number a task, ({len(a)},)")
        rows = np.vstack([before, a])
    interference = np.diff(rows, axis=0)
    last, earlier = a[-1, :-1], a[:-1, :-1]
    return Forgetting(
        average=float(a.mean()),
        backward_transfer=float((last - np.diag(a)[:-1]).mean()),
        forgetting=float((earlier.max(0) - last).mean()),
        max_drop=float(max(0.0, -interference.min())),
        interference=interference,
        total_interference=float(interference.sum()),
    )


def _numbers(name: str, values: Any) -> Array:
    try:
        found: Array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as problem:
        raise ConfigError(f"{name} is no array of numbers: {problem}") from problem
    if not np.isfinite(found).all():
        raise ConfigError(
            f"{name} holds {int((~np.isfinite(found)).sum())} numbers that are missing or not "
            "finite; measure them, or leave the stages out"
        )
    return found
