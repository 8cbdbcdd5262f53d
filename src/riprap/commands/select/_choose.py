"""Choose rows of a whole data set with the strategies of `riprap.selection`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from riprap.errors import ConfigError
from riprap.selection import Scores
from riprap.selection.strategies import ALL_STRATEGIES, Random, get_strategy

Array = np.ndarray
Columns = Mapping[str, Array]  # scores of all rows, by column
HARM = "harm/"  # before a behavior's name
KNOWN = frozenset({"norm", "proxy", "harm", "category"})  # scores of a whole data set
STRATEGIES = [kind.name for kind in ALL_STRATEGIES if kind.needs <= KNOWN]
SEED = 0  # of random choices


def check_strategy(name: str, behaviors: Sequence[str], category: str | None = None) -> None:
    """Raise a ConfigError if a data set has no such strategy, or an option of it is missing.

    Args:
        category: the field that names the category of a row.
    """
    parts = name.split(":")
    if unknown := [part for part in parts if part not in STRATEGIES]:
        raise ConfigError(
            f"no strategy {unknown[0]!r} for a whole data set: choose one of "
            f"{', '.join(STRATEGIES)}"
        )
    needs = get_strategy(name).all_needs
    if "harm" in needs and not behaviors:
        raise ConfigError(f"{name} needs behaviors: give --behaviors")
    if "category" in needs and category is None:
        raise ConfigError(f"{name} needs categories: give --category, the field that names them")


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


def choose(columns: Columns, strategy: str, ratio: float, categories: Array | None = None) -> Array:
    """Return a mask of the selected rows, shape (rows,); the ratio is that of the usable rows."""
    n_rows = len(columns["tokens"])
    chosen, rows = np.zeros(n_rows, dtype=bool), np.flatnonzero(usable(columns))
    if not len(rows):
        return chosen
    count, rng = max(1, int(ratio * len(rows) + 1e-9)), np.random.default_rng(SEED)
    chooser = get_strategy(strategy)
    if isinstance(chooser, Random):  # one draw per row: a larger ratio adds rows to a smaller one
        positions = np.argsort(rng.random(n_rows)[rows], kind="stable")[:count]
    else:
        loss, tokens, norm, proxy = (columns[n] for n in ("loss", "tokens", "norm", "proxy"))
        scores = Scores(loss, tokens, norm, proxy, harms(columns), category=categories)
        positions = chooser.choose(scores.select(rows), count, rng)
    chosen[rows[positions]] = True
    return chosen
