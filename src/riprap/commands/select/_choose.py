"""Choose rows of a whole data set with the strategies of `riprap.selection`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from riprap.errors import ConfigError
from riprap.selection import Scores
from riprap.selection.strategies import ALL_STRATEGIES, Random

Array = np.ndarray
Columns = Mapping[str, Array]  # scores of all rows, by column
HARM = "harm/"  # before a behavior's name
STRATEGIES = {s.name: s for s in ALL_STRATEGIES if s.needs <= {"norm", "proxy", "harm"}}
SEED = 0  # of the strategy `random`


def check_strategy(name: str, behaviors: Sequence[str]) -> None:
    """Raise a ConfigError if there is no such strategy for a data set, or it needs behaviors."""
    if name not in STRATEGIES:
        raise ConfigError(
            f"no strategy {name!r} for a whole data set: choose one of {', '.join(STRATEGIES)}"
        )
    if "harm" in STRATEGIES[name].needs and not behaviors:
        raise ConfigError(f"{name} needs behaviors: give --behaviors")


def usable(columns: Columns) -> Array:
    """Return a mask of the rows with response tokens and finite scores, shape (rows,)."""
    mask = columns["tokens"] > 0
    for values in columns.values():
        if values.dtype.kind == "f":
            mask = mask & np.isfinite(values)
    return np.asarray(mask)


def harms(columns: Columns) -> dict[str, Array]:
    """Return the predicted harm of each row, by behavior."""
    return {n.removeprefix(HARM): values for n, values in columns.items() if n.startswith(HARM)}


def choose(columns: Columns, strategy: str, ratio: float) -> Array:
    """Return a mask of the selected rows, shape (rows,); the ratio is that of the usable rows."""
    n_rows = len(columns["tokens"])
    chosen, rows = np.zeros(n_rows, dtype=bool), np.flatnonzero(usable(columns))
    if not len(rows):
        return chosen
    count, rng = max(1, int(ratio * len(rows) + 1e-9)), np.random.default_rng(SEED)
    chooser = STRATEGIES[strategy]()
    if isinstance(chooser, Random):  # one draw per row: a larger ratio adds rows to a smaller one
        positions = np.argsort(rng.random(n_rows)[rows], kind="stable")[:count]
    else:
        loss, tokens, norm, proxy = (columns[n] for n in ("loss", "tokens", "norm", "proxy"))
        scores = Scores(loss, tokens, norm, proxy, harms(columns))
        positions = chooser.choose(scores.select(rows), count, rng)
    chosen[rows[positions]] = True
    return chosen
