"""Series and comparisons of finished runs, as tables and figures need them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np

from experiments.toy.analysis import Run
from riprap.record import Reader

FRESH = 0  # age of a protected gradient computed right before the step


@dataclass
class Comparison:
    """Predicted and realized change of one behavior's mean margin, in each compared step.

    Attributes:
        predicted: shape (ages + 1, steps), the freshest gradient first; NaN if none was as old.
        realized: shape (steps,).
    """

    predicted: np.ndarray
    realized: np.ndarray


def comparisons(run: Run) -> dict[str, Comparison]:
    """Return the comparisons of the run by behavior."""
    return {
        name: Comparison(
            np.vstack([run.arrays[f"predicted/{name}"], run.arrays[f"stale/{name}"]]),
            run.arrays[f"realised/{name}"],
        )
        for name in run.histories
        if f"predicted/{name}" in run.arrays
    }


def pooled(comparisons: Iterable[Comparison]) -> Comparison:
    """Concatenate the steps of several seeds."""
    parts = list(comparisons)
    return Comparison(
        np.hstack([part.predicted for part in parts]),
        np.concatenate([part.realized for part in parts]),
    )


Series = dict[str, list[tuple[int, float]]]


def series(run: Run) -> Series:
    """Return readings of the run as a whole: (step, value) by signal, one entry a layer."""
    values: Series = {}
    with Reader(run.folder) as reader:
        for reading in reader.readings():
            if reading.behavior == "" and reading.value is not None:
                values.setdefault(reading.signal, []).append((reading.step, reading.value))
    return values


def cells(runs: Iterable[Run]) -> dict[tuple[str, str], list[Run]]:
    """Group runs by (condition, behavior), in the order of the runs."""
    known = list(runs)
    names = list(dict.fromkeys(name for run in known for name in run.histories))
    conditions = list(dict.fromkeys(run.condition for run in known))
    return {
        (condition, name): [r for r in known if r.condition == condition and name in r.histories]
        for condition, name in product(conditions, names)
    }
