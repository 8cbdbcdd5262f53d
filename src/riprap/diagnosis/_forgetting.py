"""Continual-learning metrics of tasks that were learned in sequence."""

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
    """Metrics of a sequence of T training stages, all in the unit of the accuracy matrix.

    Attributes:
        average: mean over stages of the mean over all T tasks, including tasks not yet trained.
        backward_transfer: BWT, mean over j < T of a_{T,j} − a_{j,j}; below 0 is forgetting.
        forgetting: FM, mean over j < T of max_{t<T} a_{t,j} − a_{T,j}; above 0 is forgetting.
        max_drop: the largest drop of a task in one stage; 0 if no task dropped.
        interference: I_{t,j} = a_{t,j} − a_{t−1,j}, shape (stages compared, T): row t is the effect
            of a stage on each task. The first row is that of stage 1 if `start` was given, else of
            stage 2.
        total_interference: sum of all I_{t,j}, including gains on the trained tasks.
    """

    average: float
    backward_transfer: float
    forgetting: float
    max_drop: float
    interference: Array
    total_interference: float


def forgetting(accuracy_matrix: Any, start: Sequence[float] | Array | None = None) -> Forgetting:
    """Compute continual-learning metrics from the accuracy of each task after each stage.

    Args:
        accuracy_matrix: shape (T, T), T ≥ 2: row t is the state after stage t, column j the task
            that stage j trains. Any score of which more is better.
        start: shape (T,), the same before the first stage.

    Source: Lopez-Paz and Ranzato, 1706.08840 (BWT); Chaudhry et al., 1801.10112 (forgetting), here
    with the maximum over all stages before the last.

    Raises:
        ConfigError: wrong shape, or missing numbers: metrics of an incomplete matrix would be
            misleading.
    """
    a = _as_array("accuracy_matrix", accuracy_matrix)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or len(a) < 2:
        raise ConfigError(
            f"accuracy_matrix has shape {a.shape}; expected (T, T) with T >= 2, one row per stage "
            "and one column per task"
        )
    before = np.zeros((0, len(a))) if start is None else _as_array("start", start)
    if start is not None and before.shape != (len(a),):
        raise ConfigError(f"start has shape {before.shape}; expected one per task, ({len(a)},)")
    interference = np.diff(np.vstack([before, a]), axis=0)
    last, earlier = a[-1, :-1], a[:-1, :-1]
    return Forgetting(
        average=float(a.mean()),
        backward_transfer=float((last - np.diag(a)[:-1]).mean()),
        forgetting=float((earlier.max(0) - last).mean()),
        max_drop=float(max(0.0, -interference.min())),
        interference=interference,
        total_interference=float(interference.sum()),
    )


def _as_array(name: str, values: Any) -> Array:
    try:
        array: Array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as problem:
        raise ConfigError(f"{name} is not an array of numbers: {problem}") from problem
    if not np.isfinite(array).all():
        raise ConfigError(
            f"{name} has {int((~np.isfinite(array)).sum())} entries that are missing or not "
            "finite; measure them, or drop their stages"
        )
    return array
