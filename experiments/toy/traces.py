"""What tables and figures need of a finished run beyond its tracks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np

from experiments.toy.analysis import Run
from experiments.toy.simulate import TRUTH
from riprap.record import Reader

FRESH = 0  # age of a protected gradient taken right before the step


@dataclass
class Comparison:
    """Predicted and realised change of one behaviour's mean margin, in each compared step.

    Attributes:
        predicted: shape (ages + 1, steps), the freshest gradient first; NaN where none was as old.
        realised: shape (steps,).
    """

    predicted: np.ndarray
    realised: np.ndarray


def comparisons(run: Run) -> dict[str, Comparison]:
    """By behaviour, what `Claim` compared during the run."""
    with np.load(run.folder / TRUTH) as arrays:
        return {
            name: Comparison(
                np.vstack([arrays[f"predicted/{name}"], arrays[f"stale/{name}"]]),
                arrays[f"realised/{name}"],
            )
            for name in run.tracks
            if f"predicted/{name}" in arrays
        }


def pooled(found: Iterable[Comparison]) -> Comparison:
    """The steps of several seeds one after another."""
    parts = list(found)
    return Comparison(
        np.hstack([part.predicted for part in parts]),
        np.concatenate([part.realised for part in parts]),
    )


Series = dict[str, list[tuple[int, float]]]


def series(run: Run) -> Series:
    """Readings that concern the run as a whole: (step, value) by signal; layers one by one."""
    found: Series = {}
    with Reader(run.folder) as reader:
        for reading in reader.readings():
            if reading.behavior == "" and reading.value is not None:
                found.setdefault(reading.signal, []).append((reading.step, reading.value))
    return found


def cells(runs: Iterable[Run]) -> dict[tuple[str, str], list[Run]]:
    """The runs of each (condition, behaviour), in the order of the runs."""
    known = list(runs)
    names = list(dict.fromkeys(name for run in known for name in run.tracks))
    conditions = list(dict.fromkeys(run.condition for run in known))
    return {
        (condition, name): [r for r in known if r.condition == condition and name in r.tracks]
        for condition, name in product(conditions, names)
    }
