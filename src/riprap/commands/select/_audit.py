"""Compare selected and rejected rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from riprap import report
from riprap._text import shorten
from riprap.commands.select._choose import Array, choose, harms, usable
from riprap.commands.select._store import number_columns
from riprap.report import Audit, Group, HarmfulRow

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
    """Compare groups of rows by their scores; `chosen` is a mask of all rows of the table."""
    columns = number_columns(table)
    mask = usable(columns)
    masks = {"all": mask, report.SELECTED: chosen, report.REJECTED: mask & ~chosen}
    masks |= {name: choose(columns, name, ratio) for name in report.NORM_GROUPS}
    names, codes = _categories(table["category"])
    groups = []
    for name, rows in masks.items():
        sizes = np.bincount(codes[rows], minlength=len(names))[: len(names)].tolist()
        categories = {n: size for n, size in sorted(zip(names, sizes, strict=True)) if size}
        groups.append(_group(name, columns, rows, categories))
    counts = len(table), int(mask.sum()), int(columns["cut"].sum())
    histogram = _norm_histogram(columns["norm"], mask, chosen)
    harmful = _most_harmful(table, columns, mask, chosen)
    return Audit(title, settings, strategy, ratio, *counts, groups, histogram, harmful)


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
    """Count rows by bin of the norm: (not selected, selected)."""
    counted = mask & (norms > 0)
    bins = np.floor(np.log10(norms[counted]) * report.BINS_PER_DECADE).astype(int)
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
    harmful = []
    for row in rows.tolist():
        own = {name: float(values[row]) for name, values in by_behavior.items()}
        behavior = max(own, key=lambda name: own[name]) if own else ""
        number, norm, loss = (columns[name][row].item() for name in ("row", "norm", "loss"))
        row_id, category = (_shorten(table[name][row].as_py()) for name in ("id", "category"))
        scores = (own.get(behavior), norm, loss)
        harmful.append(HarmfulRow(number, row_id, category, behavior, *scores, bool(chosen[row])))
    return harmful


def _shorten(text: str | None) -> str | None:
    return None if text is None else shorten(text, MAX_NAME_LENGTH)
