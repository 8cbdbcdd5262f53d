"""Which rows of a whole data set are taken, from a file of scores that need not fit into memory.

The same rules as the strategies of `riprap.selection`, which `tests/launch/test_select_choosing.py`
compares them with; there the rows of a batch are in memory. Here each rule becomes a key (the rows
of smallest key are taken), and order statistics are counted out over several passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from riprap.errors import ConfigError

Array = np.ndarray
Group = Mapping[str, Array]  # some rows, column by column
Read = Callable[[], Iterator[Group]]  # begins a pass over all rows, group after group
HARM = "harm/"  # before a behaviour's name

_DIGIT = 16  # bits that one pass settles
_SIGN = np.uint64(1 << 63)


@dataclass(frozen=True)
class Rule:
    """A strategy as a key.

    Attributes:
        by: the column that counts; "harm": the worst of the behaviours; "noise": chance.
        largest: whether the largest are taken.
        usual: whether only rows with |loss − mean| ≤ std are.
        near: whether distances from the median are meant.
    """

    by: str
    largest: bool = False
    usual: bool = False
    near: bool = False


RULES = {
    "random": Rule("noise"),
    "low": Rule("norm"),
    "high": Rule("norm", largest=True),
    "moderate": Rule("norm", usual=True, near=True),
    "moderate_by_loss": Rule("loss", usual=True, near=True),
    "proxy": Rule("proxy", usual=True, near=True),
    "least_harm": Rule("harm", usual=True),
}


def rule_of(strategy: str, behaviors: Sequence[str]) -> Rule:
    """The rule by that name.

    Raises:
        ConfigError: there is none, or it needs behaviours.
    """
    if strategy not in RULES:
        raise ConfigError(
            f"no strategy {strategy!r} for a whole data set: choose one of {', '.join(RULES)}"
        )
    if RULES[strategy].by == "harm" and not behaviors:
        raise ConfigError(f"{strategy} needs behaviours: give --behaviors")
    return RULES[strategy]


def usable(group: Group) -> Array:
    """Which rows have response tokens, and numbers that are finite; shape (rows,)."""
    found = group["tokens"] > 0
    for values in group.values():
        if values.dtype.kind == "f":
            found = found & np.isfinite(values)
    return found


def masks(read: Read, rule: Rule, ratio: float, seed: int = 0) -> Iterator[Array]:
    """For each group of a pass which of its rows are taken, shape (rows,).

    Of equal keys the first are taken. At most one group is held at a time.
    """
    total = sum(int(usable(group).sum()) for group in read())
    within = _usual(read) if rule.usual else (-np.inf, np.inf)
    middle = 0.0
    if rule.near and total:
        middle = _median(lambda: (g[rule.by][_eligible(g, within)] for g in read()))

    def keys() -> Iterator[tuple[Array, Array]]:
        noise = np.random.default_rng(seed)
        for group in read():
            values = (
                noise.random(len(group["loss"])) if rule.by == "noise" else _column(group, rule)
            )
            values = np.abs(values - middle) if rule.near else values
            yield -values if rule.largest else values, _eligible(group, within)

    eligible = sum(int(fits.sum()) for _, fits in keys())
    count = min(max(1, int(ratio * total + 1e-9)), eligible)
    if count == 0:
        yield from (np.zeros(len(values), dtype=bool) for values, _ in keys())
        return
    last = order_statistic(lambda: (values[fits] for values, fits in keys()), count - 1)
    ties = count - sum(int((values[fits] < last).sum()) for values, fits in keys())
    for values, fits in keys():
        equal = fits & (values == last)
        equal &= np.cumsum(equal) <= ties
        ties -= int(equal.sum())
        yield (fits & (values < last)) | equal


def _column(group: Group, rule: Rule) -> Array:
    if rule.by != "harm":
        return group[rule.by]
    return worst(group)


def worst(group: Group) -> Array:
    """The largest predicted harm to any behaviour, shape (rows,)."""
    return np.max([values for name, values in group.items() if name.startswith(HARM)], axis=0)


def _eligible(group: Group, within: tuple[float, float]) -> Array:
    return usable(group) & (group["loss"] >= within[0]) & (group["loss"] <= within[1])


def _usual(read: Read) -> tuple[float, float]:
    """Ends of |loss − mean| ≤ std over the usable rows; two passes."""
    count, total, squares = 0, 0.0, 0.0
    for group in read():
        own = group["loss"][usable(group)]
        count, total = count + len(own), total + float(own.sum())
    mean = total / max(count, 1)
    for group in read():
        squares += float(np.square(group["loss"][usable(group)] - mean).sum())
    # Equal losses differ from their mean by rounding alone.
    reach = (squares / max(count, 1)) ** 0.5 * (1 + 1e-9) + 1e-12
    return mean - reach, mean + reach


def _median(values: Callable[[], Iterator[Array]]) -> float:
    count = sum(len(part) for part in values())
    if count == 0:
        return 0.0
    low = order_statistic(values, (count - 1) // 2)
    return low if count % 2 else (low + order_statistic(values, count // 2)) / 2


def order_statistic(values: Callable[[], Iterator[Array]], k: int) -> float:
    """The k-th smallest (from 0) of all finite float64 values, exactly, in four passes.

    A radix search: each pass counts the values that share the digits found so far by their next 16
    bits, so that memory is the same for any number of them.
    """
    found = 0
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        counts = np.zeros(1 << _DIGIT, dtype=np.int64)
        for part in values():
            codes = _codes(part)
            if shift + _DIGIT < 64:
                codes = codes[codes >> np.uint64(shift + _DIGIT) == found]
            digits = (codes >> np.uint64(shift)) & np.uint64((1 << _DIGIT) - 1)
            counts += np.bincount(digits.astype(np.int64), minlength=1 << _DIGIT)
        until = np.cumsum(counts)
        digit = int(np.searchsorted(until, k, side="right"))
        k -= int(until[digit - 1]) if digit else 0
        found = found << _DIGIT | digit
    code = np.array([found], dtype=np.uint64)
    bits = np.where(code & _SIGN, code ^ _SIGN, ~code)
    return float(bits.view(np.float64)[0])


def _codes(values: Array) -> Array:
    """Unsigned integers in the order of the values."""
    bits = (np.ascontiguousarray(values, dtype=np.float64) + 0.0).view(np.uint64)  # no −0
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)
