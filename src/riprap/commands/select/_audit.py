"""What the chosen rows are like beside the others, from the file of scores in one pass."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from riprap._text import shorten
from riprap.commands.select._choose import HARM, RULES, Read, masks, usable, worst
from riprap.report import BINS_PER_DECADE, REJECTED, NORM_GROUPS, SELECTED, Audit, Group, HarmfulRow

KINDS, OTHERS = 40, "others"  # categories told apart; a field of ids must not fill the memory
SHOWN_ROWS, NAME = 20, 60

Array = np.ndarray


def audit(
    tables: Iterable[pa.Table],
    read: Read,
    title: str,
    settings: dict[str, Any],
    strategy: str,
    ratio: float,
) -> Audit:
    """Look once at all scores.

    Args:
        tables: row group after row group of the whole scores, with `chosen`.
        read: begins a pass over the numbers in the same groups.
    """
    names = [HARM + name for name in settings["behaviors"]]
    sums = {name: _Sum(names) for name in ("all", SELECTED, REJECTED, *NORM_GROUPS)}
    found = Audit(title, settings, strategy, ratio, 0, 0, 0, [], {}, [])
    kinds: dict[str, None] = {}
    heap: list[tuple[float, int, HarmfulRow]] = []
    by_norm = zip(*(masks(read, RULES[name], ratio) for name in NORM_GROUPS), strict=True)
    for table, chosen_by in zip(tables, by_norm, strict=True):
        numbers = _numbers(table)
        fits = usable(numbers)
        taken = numbers["chosen"]
        found.rows += len(table)
        found.usable += int(fits.sum())
        found.truncated += int(numbers["cut"].sum())
        categories = _kinds(table["category"].to_pylist(), kinds)
        for name, mask in zip(NORM_GROUPS, chosen_by, strict=True):
            sums[name].add(numbers, mask, categories)
        for name, mask in (("all", fits), (SELECTED, taken), (REJECTED, fits & ~taken)):
            sums[name].add(numbers, mask, categories)
        _bars(found.norms, numbers["norm"], fits, taken)
        _keep_worst(heap, table, numbers, fits, names)
    found.groups = [total.group(name) for name, total in sums.items()]
    found.most_harmful = [one for _, _, one in sorted(heap, key=lambda entry: entry[:2], reverse=True)]
    return found


class _Sum:
    """Sums over the rows of a group."""

    def __init__(self, harms: list[str]) -> None:
        self.columns = ["tokens", "loss", "norm", *harms]
        self.rows, self.totals = 0, dict.fromkeys(self.columns, 0.0)
        self.categories: dict[str, int] = {}

    def add(self, numbers: dict[str, Array], mask: Array, categories: Array | None) -> None:
        self.rows += int(mask.sum())
        for name in self.columns:
            self.totals[name] += float(numbers[name][mask].sum())
        if categories is not None:
            for name, count in zip(*np.unique(categories[mask], return_counts=True), strict=True):
                self.categories[str(name)] = self.categories.get(str(name), 0) + int(count)

    def group(self, name: str) -> Group:
        means = {key: total / max(self.rows, 1) for key, total in self.totals.items()}
        tokens, loss, norm = (means.pop(key) for key in ("tokens", "loss", "norm"))
        harm = {key.removeprefix(HARM): value for key, value in means.items()}
        return Group(name, self.rows, tokens, loss, norm, harm, self.categories)


def _numbers(table: pa.Table) -> dict[str, Array]:
    strings = ("id", "category")
    return {
        name: np.asarray(table[name].combine_chunks().to_numpy(zero_copy_only=False))
        for name in table.column_names
        if name not in strings
    }


def _kinds(values: list[str | None], known: dict[str, None]) -> Array | None:
    """Category of each row, of which the first `KINDS` are told apart; None without any."""
    if not any(value is not None for value in values):
        return None
    for value in values:
        if value is not None and len(known) < KINDS:
            known.setdefault(value)
    return np.array(
        [OTHERS if value not in known else str(value) for value in values], dtype=object
    )


def _bars(norms: dict[int, list[int]], values: Array, fits: Array, taken: Array) -> None:
    counted = fits & (values > 0)
    places = np.floor(np.log10(values[counted]) * BINS_PER_DECADE).astype(int)
    for place, chosen in zip(places.tolist(), taken[counted].tolist(), strict=True):
        norms.setdefault(place, [0, 0])[int(chosen)] += 1


def _keep_worst(
    heap: list[tuple[float, int, HarmfulRow]],
    table: pa.Table,
    numbers: dict[str, Array],
    fits: Array,
    names: list[str],
) -> None:
    values = np.where(fits, worst(numbers) if names else numbers["norm"], -np.inf)
    for at in np.argsort(-values, kind="stable")[:SHOWN_ROWS].tolist():
        if not fits[at]:
            break
        row = int(numbers["row"][at])
        own = {name: float(numbers[name][at]) for name in names}
        most = max(own, key=lambda name: own[name]) if own else ""
        entry = HarmfulRow(
            row,
            _short(table["id"][at].as_py()),
            _short(table["category"][at].as_py()),
            most.removeprefix(HARM),
            own.get(most),
            float(numbers["norm"][at]),
            float(numbers["loss"][at]),
            bool(numbers["chosen"][at]),
        )
        (heapq.heappush if len(heap) < SHOWN_ROWS else heapq.heappushpop)(
            heap, (float(values[at]), -row, entry)
        )


def _short(text: str | None) -> str | None:
    return None if text is None else shorten(text, NAME)


def chosen_rows(tables: Iterable[pa.Table]) -> Iterator[tuple[int, bool]]:
    """Line numbers in the order of the file, and whether each was chosen."""
    for table in tables:
        yield from zip(table["row"].to_pylist(), table["chosen"].to_pylist(), strict=True)
