"""Which candidates of a cycle are kept: the per-instance Pareto front, by brute force."""

from __future__ import annotations

import math
from itertools import combinations
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riprap.fastslow._population import Candidate, Population, choose_at_random, choose_front, front

TABLES = st.integers(1, 5).flatmap(
    lambda width: st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=width, max_size=width),
        min_size=1,
        max_size=7,
    )
)


def dominated(at: int, scores: list[list[float]]) -> bool:
    """By numpy, column by column: another is nowhere lower and somewhere higher."""
    gaps = np.array(scores) - np.array(scores[at])
    return bool(((gaps >= 0).all(axis=1) & (gaps > 0).any(axis=1)).any())


@given(TABLES, st.integers(1, 4))
def test_all_kept_are_best_on_a_problem_and_the_highest_mean_is_first(
    scores: list[list[float]], keep: int
) -> None:
    kept = choose_front(scores, keep)
    table = np.array(scores)
    told = table[:, (table != table[0]).any(axis=0)]
    best = (told == told.max(axis=0)).any(axis=1) if told.size else [True] * len(scores)
    on_front = [at for at in range(len(scores)) if best[at] and not dominated(at, scores)]
    assert len(kept) == len(set(kept)) == min(keep, len(on_front))
    assert set(kept) <= set(on_front)
    means = [sum(scores[at]) for at in kept]
    assert means == sorted(means, reverse=True)


@given(TABLES)
def test_those_kept_win_almost_as_many_problems_as_any_choice_could(
    scores: list[list[float]],
) -> None:
    """A greedy cover reaches at least 1 - 1/e of the best one."""
    wins = front(scores)
    for keep in (1, 2, 3):
        covered = set().union(*(wins[at] for at in choose_front(scores, keep)))
        most = max(
            len(set().union(*(wins[at] for at in some)))
            for some in combinations(range(len(scores)), min(keep, len(scores)))
        )
        assert len(covered) >= (1 - 1 / 2.718281828) * most
        assert keep > 1 or len(covered) == most


def test_a_specialist_is_kept_before_a_second_generalist() -> None:
    scores = [[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0] * 4]
    assert choose_front(scores, 2) == [0, 2]
    assert choose_front(scores, 4) == [0, 2]  # the second is nowhere better than the first


def test_a_problem_that_nobody_solves_keeps_nobody() -> None:
    scores = [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert front(scores) == [{0, 1}, set(), set()]
    assert choose_front(scores, 4) == [0]


def test_a_problem_on_which_one_was_not_scored_does_not_count() -> None:
    scores = [[None, -1.0, 0.5], [-9.0, -2.0, 0.5]]
    assert front(scores) == [{1}, set()]
    assert choose_front(scores, 2) == [0]
    assert choose_front([[None, None], [1.0, 1.0]], 2) == [0, 1]
    half = Candidate(0, "", None, [None, 3.0], on_front=True, kept=True)
    assert half.score == 3.0
    assert math.isnan(Candidate(0, "", None, [None], on_front=True, kept=True).score)


def test_where_all_score_the_same_the_oldest_are_kept() -> None:
    assert choose_front([[0.0, 0.0]] * 5, 3) == [0, 1, 2]


def test_chance_has_no_favorites() -> None:
    rng = Random(0)
    draws = [choose_at_random(5, 2, rng) for _ in range(2000)]
    counts = [sum(at in drawn for drawn in draws) for at in range(5)]
    assert all(700 < count < 900 for count in counts)
    assert sorted(choose_at_random(2, 4, rng)) == [0, 1]


def test_a_text_that_comes_back_has_its_first_parent() -> None:
    population = Population(["a", "b"])
    population.add("c", "b")
    population.add("d", "c")
    population.add("c", "d")
    population.add("a", "d")
    assert [population.lineage(text) for text in "abcd"] == [(0, None), (1, None), (2, 1), (3, 2)]
    other = Population(["x"])
    other.load_state_dict(population.state_dict())
    assert other.state_dict() == population.state_dict()
    other.texts = ["lost"]
    with pytest.raises(ValueError, match="not among the known instructions"):
        Population(["x"]).load_state_dict(other.state_dict())
