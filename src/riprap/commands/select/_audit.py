"""Compare selected and rejected rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from riprap._text import shorten
from riprap.commands.select._choose import Array, choose, harms, usable
from riprap.commands.select._store import number_columns
from riprap.report import (
    BINS_PER_DECADE,
    NORM_GROUPS,
    REJECTED,
    SELECTED,
    Audit,
    Group,
    HarmfulRow,
)

MAX_CATEGORIES, OTHERS = 40, "others"  # rows of further categories are counted together
MAX_HARMFUL, MAX_NAME_LENGTH = 20, 60


def audit(
    table: pa.Table,
    chosen: Array,
    title: str,
    settings: dict[str, Any],
    strategy: str,
    ratio: float,
) -> Audit:
    """Compare groups of rows by their scores.

    Args:
        table: scores of all rows.
        chosen: mask of the chosen rows, shape (rows,).
    """
    columns = number_columns(table)
    mask = usable(columns)
    masks = {"all": mask, SELECTED: chosen, REJECTED: mask & ~chosen}
    masks |= {name: choose(columns, name, ratio) for name in NORM_GROUPS}
    names, codes = _categories(table["category"])
    groups = []
    for name, rows in masks.items():
        counts = np.bincount(codes[rows], minlength=len(names))[: len(names)].tolist()
        categories = {n: count for n, count in sorted(zip(names, counts, strict=True)) if count}
        groups.append(_group(name, columns, rows, categories))
    return Audit(
        title,
        settings,
        strategy,
        ratio,
        len(table),
        int(mask.sum()),
        int(columns["cut"].sum()),
        groups,
        _norm_histogram(columns["norm"], mask, chosen),
        _most_harmful(table, columns, mask, chosen),
    )


def _group(name: str, columns: dict[str, Array], rows: Array, categories: dict[str, int]) -> Group:
    n_rows = int(rows.sum())

    def mean(values: Array) -> float:
        return float(values[rows].sum()) / max(n_rows, 1)

    tokens, loss, norm = (mean(columns[score]) for score in ("tokens", "loss", "norm"))
    harm = {behavior: mean(values) for behavior, values in harms(columns).items()}
    return Group(name, n_rows, tokens, loss, norm, harm, categories)


def _categories(column: pa.ChunkedArray) -> tuple[list[str], Array]:
    """Return the categories in order of appearance, and the category of each row as an index."""
    encoded = column.combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    if not names:
        return [], np.zeros(len(column), dtype=int)
    names = [name for name in names[:MAX_CATEGORIES] if name != OTHERS] + [OTHERS]
    index = {name: code for code, name in enumerate(names)}
    codes = [index.get(name, len(names) - 1) for name in encoded.dictionary.to_pylist()]
    by_row = encoded.indices.fill_null(len(codes)).to_numpy(zero_copy_only=False)
    return names, np.array([*codes, len(names) - 1])[by_row]


def _norm_histogram(norms: Array, mask: Array, chosen: Array) -> dict[int, list[int]]:
    """Count rows by bin of the norm: (not chosen, chosen)."""
    counted = mask & (norms > 0)
    bins = np.floor(np.log10(norms[counted]) * BINS_PER_DECADE).astype(int)
    values, index = np.unique(bins, return_inverse=True)
    n_rows, n_chosen = np.bincount(index), np.bincount(index, weights=chosen[counted])
    return {
        int(value): [int(rows - selected), int(selected)]
        for value, rows, selected in zip(values, n_rows, n_chosen, strict=True)
    }


def _most_harmful(
    table: pa.Table, columns: dict[str, Array], mask: Array, chosen: Array
) -> list[HarmfulRow]:
    """Return the rows with the largest predicted harm; without behaviors, the largest norm."""
    by_behavior = harms(columns)
    worst = np.max(list(by_behavior.values()), axis=0) if by_behavior else columns["norm"]
    rows = np.flatnonzero(mask)
    rows = rows[np.argsort(-worst[rows], kind="stable")[:MAX_HARMFUL]]
    found = []
    for row in rows.tolist():
        own = {name: float(values[row]) for name, values in by_behavior.items()}
        behavior = max(own, key=lambda name: own[name]) if own else ""
        found.append(
            HarmfulRow(
                int(columns["row"][row]),
                _shorten(table["id"][row].as_py()),
                _shorten(table["category"][row].as_py()),
                behavior,
                own.get(behavior),
                float(columns["norm"][row]),
                float(columns["loss"][row]),
                bool(chosen[row]),
            )
        )
    return found


def _shorten(text: str | None) -> str | None:
    return None if text is None else shorten(text, MAX_NAME_LENGTH)
