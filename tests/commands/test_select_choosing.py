"""Choosing from a file of scores, group by group, is what the strategies choose in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riprap.commands.select._choose import RULES, masks, order_statistic, rule_of
from riprap.errors import ConfigError
from riprap.selection import Scores
from riprap.selection.strategies import strategy_of

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(FINITE, min_size=1, max_size=30), st.data())
def test_order_statistics_are_exact(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values) - 1))
    parts = np.array_split(np.array(values), 3)
    assert order_statistic(lambda: iter(parts), k) == np.sort(values)[k]


def columns(n: int, seed: int, ties: bool) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(seed)
    found = {name: noise.lognormal(size=n) for name in ("loss", "norm", "proxy")}
    found |= {f"harm/{name}": noise.normal(size=n) for name in ("a", "b")}
    if ties:
        found = {name: np.round(values, 0) for name, values in found.items()}
    tokens = noise.integers(0, 6, size=n)  # some rows have none
    return {"tokens": tokens.astype(np.int32)} | found


def expected(name: str, given: dict[str, np.ndarray], ratio: float) -> np.ndarray:
    """What the strategy of the selection room takes, with everything in memory."""
    harm = {"a": given["harm/a"], "b": given["harm/b"]}
    scores = Scores(given["loss"], given["tokens"], given["norm"], given["proxy"], harm)
    usable = scores.usable()
    count = max(1, int(ratio * len(usable) + 1e-9))
    rows = strategy_of(name).choose(scores.only(usable), count, np.random.default_rng(0))
    return np.sort(usable[rows])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", [name for name in RULES if name != "random"])
def test_the_rows_are_those_of_the_strategy(name: str, ties: bool) -> None:
    for seed, (n, size) in enumerate([(1, 1), (7, 3), (50, 8), (301, 64), (300, 1000)]):
        given = columns(n, seed, ties)
        given["tokens"][0] = 1
        for ratio in (0.05, 0.2, 0.9):
            found = np.concatenate(list(masks(lambda: cut(given, size), RULES[name], ratio)))  # noqa: B023
            assert found.tolist() == np.isin(np.arange(n), expected(name, given, ratio)).tolist()


def cut(given: dict[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(given["loss"]), size):
        yield {name: values[start : start + size] for name, values in given.items()}


def test_chance_is_the_same_each_time_and_in_any_groups() -> None:
    given = columns(200, 0, ties=False)
    found = [np.concatenate(list(masks(lambda: cut(given, s), RULES["random"], 0.25, 3)))  # noqa: B023
             for s in (7, 200)]  # fmt: skip
    assert (found[0] == found[1]).all()
    usable = given["tokens"] > 0
    assert found[0].sum() == int(0.25 * usable.sum())
    assert not (found[0] & ~usable).any()
    other = np.concatenate(list(masks(lambda: cut(given, 7), RULES["random"], 0.25, 4)))
    assert (found[0] != other).any()


def test_what_is_not_finite_is_never_taken() -> None:
    given = columns(40, 1, ties=False)
    given["tokens"][:] = 3
    given["norm"][5], given["loss"][6], given["harm/a"][7] = np.inf, np.nan, -np.inf
    for rule in RULES.values():
        found = np.concatenate(list(masks(lambda: cut(given, 9), rule, 1.0)))
        assert not found[5:8].any()
        assert found.any()


def test_nothing_usable_is_nothing_taken() -> None:
    given = columns(12, 1, ties=False)
    given["tokens"][:] = 0
    for rule in RULES.values():
        assert not np.concatenate(list(masks(lambda: cut(given, 5), rule, 0.5))).any()


def test_memory_is_that_of_one_group() -> None:
    """Groups of a pass are let go of before the next comes, and none is asked for ahead."""
    import weakref

    given = columns(600, 2, ties=False)
    alive: list[weakref.ref] = []
    most = 0

    def read() -> Iterator[dict[str, np.ndarray]]:
        nonlocal most
        for group in cut(given, 10):
            own = {name: values.copy() for name, values in group.items()}
            alive[:] = [one for one in alive if one() is not None] + [weakref.ref(own["loss"])]
            most = max(most, len(alive))
            yield own

    for _ in masks(read, RULES["moderate"], 0.2):
        pass
    assert most <= 3  # of 60: what is under way, and what the loop still names


def test_what_a_rule_lacks_is_said() -> None:
    with pytest.raises(ConfigError, match="choose one of random, low, high"):
        rule_of("taylor", ())
    with pytest.raises(ConfigError, match="least_harm needs behaviours: give --behaviors"):
        rule_of("least_harm", ())
