"""The verdict as a pure function, and what it is told is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from riprap.diagnosis import Evidence, Verdict
from riprap.diagnosis.answers import Answers, chance, known
from riprap.diagnosis.verdict import GONE, KEPT, judge


def evidence(**changed: float | str) -> Evidence:
    """A score that fell to 0 with all of the knowledge left."""
    plain = {
        "score_before": 1.0,
        "score_now": 0.0,
        "kind_before": 1.0,
        "kind_now": 0.0,
        "kind_own": 1.0,
        "habit": 0.2,
        "known_before": 1.0,
        "known_now": 0.5,
        "known_own": 1.0,
        "known_irrelevant": math.nan,
        "guessed": 0.1,
        "retained": 1.0,
        "low": 0.9,
        "high": 1.0,
        "regained_own": 1.0,
        "regained_irrelevant": math.nan,
        "regained_control": math.nan,
        "answers": True,
    }
    return Evidence(**(plain | changed))


GONE_ALL = {"retained": 0.0, "low": 0.0, "high": 0.1, "known_own": 0.1}
GUESSED = GONE_ALL | {"guessed": 0.3, "known_own": 0.35, "retained": 0.07, "kind_now": 1.0}
GONE_HALF = {"retained": 0.4, "low": 0.3, "high": 0.5, "known_own": 0.5, "kind_now": 0.9}
STILL_OUTSIDE = GONE_ALL | {"kind_now": 0.2, "kind_own": 0.3}  # a reminder changed little
NO_ANSWERS = {"answers": False, "guessed": math.nan, "kind_now": math.nan, "kind_own": math.nan}


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, Verdict.ALIGNMENT),
        (GONE_ALL | {"kind_now": 1.0}, Verdict.KNOWLEDGE),
        (GONE_ALL | {"kind_now": 0.2}, Verdict.BOTH),
        (GUESSED, Verdict.KNOWLEDGE),
        (STILL_OUTSIDE, Verdict.INSUFFICIENT),
        (STILL_OUTSIDE | {"habit": 0.9}, Verdict.BOTH),
        (GONE_HALF | {"score_now": 0.45}, Verdict.KNOWLEDGE),
        (GONE_HALF | {"score_now": 0.1}, Verdict.BOTH),
        ({"retained": (GONE + KEPT) / 2}, Verdict.INSUFFICIENT),
        ({"low": GONE - 0.01}, Verdict.INSUFFICIENT),
        (GONE_ALL | {"kind_now": 1.0, "high": KEPT + 0.01}, Verdict.INSUFFICIENT),
        ({"score_now": 0.95}, Verdict.INSUFFICIENT),
        ({"known_before": 0.3}, Verdict.INSUFFICIENT),
        ({"insufficient": "measures format"}, Verdict.INSUFFICIENT),
        (NO_ANSWERS, Verdict.INSUFFICIENT),
        (NO_ANSWERS | {"known_irrelevant": 0.9}, Verdict.ALIGNMENT),
        (NO_ANSWERS | GONE_ALL, Verdict.INSUFFICIENT),
        (GONE_ALL | {"kind_now": math.nan, "kind_own": math.nan}, Verdict.KNOWLEDGE),
    ],
)
def test_each_rule(changed: dict[str, float], verdict: Verdict) -> None:
    found, reason = judge(evidence(**changed))
    assert found is verdict, reason


def even(fit: np.ndarray, right: list[int]) -> Answers:
    weights = np.full(len(fit), 1 / len(fit))
    return Answers(np.zeros(len(fit)), weights, fit, np.array(right), shared=True)


def test_a_liking_for_one_answer_is_no_ignorance() -> None:
    """All probes get answer 0, and what tells them apart is small beside that."""
    fit = np.array([[9.9, 0.0, 0.1], [9.0, 1.0, 0.0], [9.0, 0.0, 1.0], [9.9, 0.1, 0.0]])
    assert known([even(fit, [0, 1, 2, 0])]).tolist() == [1, 1, 1, 1]


def test_what_single_looks_forgot_is_known_together() -> None:
    one = np.array([[1.0, 0.0], [0.2, 0.0], [0.0, 2.0], [0.0, 1.0]])
    two = np.array([[1.0, 0.0], [0.0, 2.0], [0.3, 0.0], [0.0, 1.0]])
    right = [0, 1, 1, 1]
    alone = [known([even(fit, right)]).mean() for fit in (one, two)]
    assert known([even(one, right), even(two, right)]).mean() == 1.0 > max(alone)


def test_the_size_of_a_side_does_not_move_the_middle() -> None:
    """Nine probes of one side and one of the other, a constant added to all."""
    reading = np.array([1.0] * 9 + [-1.0]) + 5.0
    sides = np.array([0] * 9 + [1])
    weights = 0.5 / np.bincount(sides)[sides]
    one = Answers(reading, weights, np.stack([reading, -reading], 1), sides, shared=True)
    assert known([one]).tolist() == [1.0] * 10


def test_chance_is_the_most_that_one_answer_serves() -> None:
    assert chance(even(np.zeros((4, 3)), [0, 1, 1, 1])) == 0.75
    options = Answers(np.zeros(4), np.full(4, 0.25), np.zeros((4, 5)), np.zeros(4, int))
    assert chance(options) == 0.2
    assert math.isnan(chance(Answers(np.zeros(4), np.full(4, 0.25))))
