"""Intervals and agreements against scipy and scikit-learn; impossible values are refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from riprap.detectors import score_interval
from riprap.errors import ConfigError
from riprap.evals import agreement, estimate


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_that_of_scipy(counts: tuple[int, int]) -> None:
    hits, n = counts
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    found = estimate([1.0] * hits + [0.0] * (n - hits))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert (found.low, found.high) == score_interval(hits / n, n)


def test_the_interval_of_a_mean_lies_between_those_of_shares() -> None:
    """Of F1 = 0.079 on 16 rows: not that of the next share, 1 of 16."""
    low, high = score_interval(0.079, 16)
    assert score_interval(1 / 16, 16)[1] < high < score_interval(2 / 16, 16)[1]
    assert score_interval(1 / 16, 16)[0] < low < score_interval(2 / 16, 16)[0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_an_estimate_lies_in_its_interval_and_that_in_0_to_1(values: list[float]) -> None:
    found = estimate(values)
    assert found.value == pytest.approx(sum(values) / len(values))
    assert -1e-12 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1 + 1e-12


@pytest.mark.parametrize("values", [[], [1.2], [float("nan")], [-0.1]])
def test_what_is_no_share_is_refused(values: list[float]) -> None:
    with pytest.raises(ConfigError):
        estimate(values)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[bool, bool]]) -> None:
    a, b = zip(*pairs, strict=True)
    found = agreement(a, b)
    assert found.same.value == pytest.approx(sum(x is y for x, y in pairs) / len(pairs))
    if len(set(a) | set(b)) == 1:
        assert math.isnan(found.kappa)
    else:
        assert found.kappa == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)


def test_agreement_by_class() -> None:
    found = agreement([True, True, False, False, True], [True, True, True, False, False])
    assert found.recall is not None and found.specificity is not None
    assert (found.recall.value, found.recall.n) == (pytest.approx(2 / 3), 3)
    assert (found.specificity.value, found.specificity.n) == (0.5, 2)
    assert agreement([True], [True]).specificity is None
    with pytest.raises(ConfigError, match="1 answers of one judge and 2"):
        agreement([True], [True, False])
