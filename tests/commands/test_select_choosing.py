"""Rows of a whole data set are chosen by the strategies, as the first implementation chose them."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from riprap.commands.select._choose import STRATEGIES, check_strategy, choose
from riprap.errors import ConfigError

# Computed by the implementation that streamed the scores from disk (commit d5639a4): the chosen
# rows, or their number and a hash.
CHOSEN = json.loads(Path(__file__).with_name("chosen_rows.json").read_text(encoding="utf-8"))
CASES = {
    "one row": (1, 1, ""),
    "seven rows": (7, 2, ""),
    "ties": (50, 3, "ties"),
    "all equal": (20, 4, "equal"),
    "not finite": (40, 5, "not finite"),
    "nothing usable": (12, 6, "nothing"),
    "three hundred": (301, 7, ""),
    "ties of hundreds": (500, 8, "ties"),
    "10^5": (100_000, 9, ""),
    "10^5, ties": (100_000, 10, "ties"),
}
NAMES = ("loss", "norm", "proxy", "harm/a", "harm/b")
RATIOS = (0.05, 0.2, 0.5, 1.0)
CONTROLS = ("random_by_length", "random_by_category")  # newer than the first implementation


def uniform(n: int, seed: int) -> np.ndarray:
    """The same numbers on every machine (SplitMix64)."""
    step, offset = 0x9E3779B97F4A7C15, seed * 0xD1342543DE82EF95 % 2**64
    state = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(step) + np.uint64(offset)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return (state ^ (state >> np.uint64(31))) / np.float64(2**64)


def columns(n: int, seed: int, kind: str) -> dict[str, np.ndarray]:
    scores = {name: uniform(n, 10 * seed + at) for at, name in enumerate(NAMES)}
    scores |= {name: scores[name] - 0.5 for name in NAMES[3:]}
    tokens = (6 * uniform(n, 10 * seed + 5)).astype(np.int32)  # some rows have none
    tokens[0] = 3
    if kind == "ties":
        scores = {name: np.round(8 * values) / 8 for name, values in scores.items()}
    if kind == "equal":
        scores = {name: np.full(n, 0.3) for name in NAMES}
    if kind == "not finite":
        tokens[:] = 3
        for at, value in enumerate((np.nan, np.inf, -np.inf, np.nan, -np.inf)):
            scores[NAMES[at]][5 + at] = value
    if kind == "nothing":
        tokens[:] = 0
    return {"tokens": tokens} | scores


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s not in CONTROLS])
@pytest.mark.parametrize("case", CASES)
def test_the_rows_are_those_of_the_first_implementation(case: str, strategy: str) -> None:
    given = columns(*CASES[case])
    for ratio in RATIOS:
        rows = np.flatnonzero(choose(given, strategy, ratio))
        digest = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16]
        short = len(given["loss"]) <= 50
        expected = CHOSEN[f"{case}; {strategy}; {ratio}"]
        assert expected == (rows.tolist() if short else [len(rows), digest])


def test_a_larger_ratio_of_random_rows_adds_to_a_smaller_one() -> None:
    given = columns(*CASES["three hundred"])
    masks = [choose(given, "random", ratio) for ratio in RATIOS]
    assert all((small <= large).all() for small, large in pairwise(masks))
    assert (masks[-1] == (given["tokens"] > 0)).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_that_are_not_usable_are_never_chosen(strategy: str) -> None:
    for case, ratio, rows in (("not finite", 1.0, slice(5, 10)), ("nothing usable", 0.5, ...)):
        given = columns(*CASES[case])
        assert not choose(given, strategy, ratio, np.arange(len(given["loss"])) % 3)[rows].any()


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_takes_as_many_rows_of_each_kind(control: str) -> None:
    given = columns(*CASES["three hundred"])
    category = np.arange(301) % 3
    kind = given["tokens"] if control == "random_by_length" else category
    for ratio in RATIOS:
        high = choose(given, "high", ratio)
        taken = choose(given, f"{control}:high", ratio, category)
        assert np.bincount(kind[taken]).tolist() == np.bincount(kind[high]).tolist()
        assert ratio == 1.0 or (taken != high).any()
        assert (taken == choose(given, f"{control}:high", ratio, category)).all()


def test_a_missing_requirement_is_named() -> None:
    with pytest.raises(ConfigError, match="choose one of random, low"):
        check_strategy("taylor", ())
    with pytest.raises(ConfigError, match="least_harm needs behaviors: give --behaviors"):
        check_strategy("least_harm", ())
    with pytest.raises(ConfigError, match="needs behaviors: give --behaviors"):
        check_strategy("random_by_length:least_harm", ())
    with pytest.raises(ConfigError, match="needs categories: give --category"):
        check_strategy("random_by_category:high", ())
    with pytest.raises(ConfigError, match="no strategy 'taylor' for a whole data set"):
        check_strategy("random_by_length:taylor", ())
    check_strategy("random_by_category:high", (), "topic")
