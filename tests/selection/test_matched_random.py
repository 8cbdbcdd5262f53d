"""Random choices with the lengths or the categories of another strategy's choice."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from riprap.errors import ConfigError
from riprap.selection import Scores, Selector
from riprap.selection.strategies import (
    Adaptive,
    High,
    Low,
    MatchedRandom,
    RandomByCategory,
    RandomByLength,
    get_strategy,
)
from selection.cases import batch
from selection.test_loops import sgd, training

KINDS = (RandomByLength, RandomByCategory)


def scores(n: int, seed: int, ties: bool = False) -> Scores:
    """Scores whose norms fall with the length, as those of real rows do."""
    made = np.random.default_rng(seed)
    tokens = made.integers(1, 6 if ties else 400, n)
    norm = made.gamma(4.0, size=n) / np.sqrt(tokens)
    category = made.choice(["code", "chat", "facts"], n, p=[0.6, 0.3, 0.1])
    return Scores(made.gamma(2.0, size=n), tokens, norm=norm, category=category)


def rows(strategy: MatchedRandom | High | Low, given: Scores, count: int, seed: int = 0) -> list:
    return sorted(strategy.choose(given, count, np.random.default_rng(seed)).tolist())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("inner", [High(), Low()], ids=lambda inner: inner.name)
@pytest.mark.parametrize(("n", "ties"), [(5, False), (40, False), (40, True), (600, False)])
def test_each_stratum_is_taken_as_often(
    kind: type[MatchedRandom], inner: High | Low, n: int, ties: bool
) -> None:
    for seed in range(5):
        given = scores(n, seed, ties)
        control = kind(inner)
        strata = control.strata(given)
        for count in (1, n // 4, n // 2, n):
            count = max(count, 1)
            chosen, taken = rows(inner, given, count), rows(control, given, count, seed)
            assert len(set(taken)) == count
            assert Counter(strata[taken].tolist()) == Counter(strata[chosen].tolist())


def test_lengths_are_those_of_the_matched_rows_where_random_ones_are_not() -> None:
    given = scores(2000, 1)
    high = np.median(given.tokens[rows(High(), given, 200)])
    matched = np.median(given.tokens[rows(RandomByLength(High()), given, 200)])
    usual = np.median(given.tokens)
    assert high < 0.4 * usual
    assert abs(matched - high) < 0.1 * high


def test_strata_are_ranges_of_lengths() -> None:
    given = scores(600, 2)
    strata = RandomByLength().strata(given)
    assert len(set(strata.tolist())) == 20
    edges = [
        (given.tokens[strata == at].min(), given.tokens[strata == at].max()) for at in range(20)
    ]
    assert all(first[1] < second[0] for first, second in pairwise(edges))
    assert len(set(RandomByLength().strata(scores(9, 2)).tolist())) == 2
    same = Scores(np.ones(30), np.full(30, 7), norm=np.ones(30))
    assert not RandomByLength().strata(same).any()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_within_a_stratum_every_row_is_as_likely(kind: type[MatchedRandom]) -> None:
    """Each of 24 rows, 8 of them taken: the frequencies are those of a uniform choice."""
    given, control = scores(24, 3), kind(High())
    strata, wanted = control.strata(given), Counter()
    wanted.update(control.strata(given)[rows(High(), given, 8)].tolist())
    sizes, times = Counter(strata.tolist()), 4000
    taken = np.zeros(24)
    rng = np.random.default_rng(0)
    for _ in range(times):
        taken[control.choose(given, 8, rng)] += 1
    expected = np.array([wanted[s] / sizes[s] for s in strata.tolist()])
    spread = np.sqrt(expected * (1 - expected) / times)
    assert (np.abs(taken / times - expected) <= 5 * spread + 1e-12).all()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_generator_gives_the_same_rows_again(kind: type[MatchedRandom]) -> None:
    given = scores(60, 4)
    assert rows(kind(High()), given, 20, 1) == rows(kind(High()), given, 20, 1)
    assert rows(kind(High()), given, 20, 1) != rows(kind(High()), given, 20, 2)


def test_a_control_is_named_with_what_it_matches() -> None:
    control = get_strategy("random_by_length:high")
    assert isinstance(control, RandomByLength) and isinstance(control.inner, High)
    assert control.label == "random_by_length:high" and control.all_needs == {"norm"}
    assert get_strategy("random_by_category").label == "random_by_category:moderate"
    with pytest.raises(ConfigError, match="low matches no other strategy"):
        get_strategy("low:high")
    with pytest.raises(ConfigError, match="no strategy 'hi'"):
        get_strategy("random_by_length:hi")


def test_the_ratio_is_that_of_the_matched_strategy() -> None:
    given = scores(100, 5)
    given.margin_spent = 1.0
    inner = Adaptive(min_ratio=0.1, inner=High())
    assert len(Selector(RandomByLength(inner), 0.5).choose(given)) == 10


def test_rows_outside_of_the_matched_choice_have_gradients_too() -> None:
    """`moderate` leaves rows out of the backward pass; its control may take them."""
    model, learned = training("lora"), set()
    selector = Selector("random_by_length:moderate", 0.4)
    optimizer = sgd(model)
    with selector.attach(model, optimizer):
        for _ in range(6):
            model(**batch()).loss.backward()
            assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
            optimizer.step()
            optimizer.zero_grad()
    for record in selector.history:
        assert record.strategy == "random_by_length:moderate" and not record.detail
        assert np.isfinite(record.scores["norm"]).all() and len(record.rows) == 2
        learned |= set(record.rows)
    assert len(learned) > 2


def test_categories_are_given_by_row_id() -> None:
    model, given = training("lora"), batch(8)
    named = {row: "even" if row % 2 == 0 else "odd" for row in range(100, 108)}
    control = Selector("random_by_category:high", 0.5, row_id="id", categories=named)
    plain = Selector("high", 0.5, row_id="id")
    optimizer = sgd(model)
    for selector in (plain, control):
        with selector.attach(model, optimizer):
            model(**given, id=torch.arange(100, 108)).loss.backward()
            optimizer.zero_grad()
    kinds = [Counter(named[row] for row in s.history[0].rows) for s in (plain, control)]
    assert kinds[0] == kinds[1]


def test_missing_categories_are_refused() -> None:
    model = training("lora")
    with pytest.raises(ConfigError, match="needs categories: give row_id="):
        Selector("random_by_category").begin(model, sgd(model))
    selector = Selector("random_by_category", row_id="id", categories={0: "a"})
    with (
        selector.attach(model, sgd(model)),
        pytest.raises(ConfigError, match="no category of row 1"),
    ):
        model(**batch(2), id=torch.arange(2)).loss.backward()
