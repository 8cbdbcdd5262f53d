"""The verdict as a pure function, and the measure of knowledge behind it."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from riprap.diagnosis import RecoveryEvidence, Verdict
from riprap.diagnosis.recovery import KEPT_ABOVE, LOST_BELOW, classify_loss
from riprap.diagnosis.recovery._answer_choices import (
    AnswerTable,
    chance_accuracy,
    chooses_correctly,
    relabeled_accuracy,
)
from riprap.diagnosis.recovery._retained import RetainedKnowledge


def evidence(**changed: float | str) -> RecoveryEvidence:
    """A score that dropped to 0 while all knowledge remains."""
    plain = {
        "score_before": 1.0,
        "score_now": 0.0,
        "n_lost": 40,
        "in_format_before": 1.0,
        "in_format_now": 0.0,
        "in_format_after_examples": 1.0,
        "modal_off_format_rate": 0.2,
        "modal_answer_before": 0.2,
        "modal_answer_now": 0.2,
        "known_before": 1.0,
        "known_now": 0.5,
        "known_after_examples": 1.0,
        "known_after_unrelated": math.nan,
        "known_paraphrased": math.nan,
        "guess_rate": 0.1,
        "retained": 1.0,
        "retained_low": 0.9,
        "retained_high": 1.0,
        "retained_relabeled": 0.0,
        "recovered_by_examples": 1.0,
        "recovered_by_unrelated": math.nan,
        "naive_model_score": math.nan,
        "has_answer_choices": True,
    }
    return RecoveryEvidence(**(plain | changed))


GONE_ALL = {"retained": 0.0, "retained_low": 0.0, "retained_high": 0.1, "known_after_examples": 0.1}
GUESSED = GONE_ALL | {
    "guess_rate": 0.3,
    "known_after_examples": 0.35,
    "retained": 0.07,
    "in_format_now": 1.0,
}
GONE_HALF = {
    "retained": 0.4,
    "retained_low": 0.3,
    "retained_high": 0.5,
    "known_after_examples": 0.5,
    "in_format_now": 0.9,
}
DAMAGED = {"damage": "pruning", "is_only_damage": True}
A_FIFTH = GONE_ALL | {"score_now": 0.8, "in_format_now": 1.0}  # all that was lost is unknown
STILL_OUTSIDE = GONE_ALL | {
    "in_format_now": 0.2,
    "in_format_after_examples": 0.3,
}  # a reminder changed little
NO_ANSWERS = {
    "has_answer_choices": False,
    "guess_rate": math.nan,
    "in_format_now": math.nan,
    "in_format_after_examples": math.nan,
}


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, Verdict.ALIGNMENT),
        (GONE_ALL | {"in_format_now": 1.0}, Verdict.KNOWLEDGE),
        (GONE_ALL | {"in_format_now": 0.2}, Verdict.BOTH),
        (GUESSED, Verdict.KNOWLEDGE),
        (STILL_OUTSIDE, Verdict.INSUFFICIENT),
        (STILL_OUTSIDE | {"modal_off_format_rate": 0.9}, Verdict.BOTH),
        (GONE_HALF, Verdict.KNOWLEDGE),  # what remains is no evidence of a lost disposition
        (GONE_HALF | {"retained": 0.64, "retained_high": 0.74}, Verdict.KNOWLEDGE),
        (GONE_HALF | {"in_format_now": 0.7}, Verdict.BOTH),
        (GONE_HALF | {"recovered_by_unrelated": 0.3}, Verdict.KNOWLEDGE),  # as any training does
        (GONE_HALF | {"known_paraphrased": 0.4}, Verdict.BOTH),
        (GONE_HALF | {"known_paraphrased": 0.4, "n_lost": 2}, Verdict.KNOWLEDGE),
        (GONE_HALF | {"known_paraphrased": 0.25, "guess_rate": 0.2}, Verdict.KNOWLEDGE),
        (GONE_HALF | DAMAGED, Verdict.DAMAGE),
        (DAMAGED, Verdict.DAMAGE),
        (DAMAGED | {"known_before": 0.3}, Verdict.DAMAGE),
        (DAMAGED | {"score_now": 0.95}, Verdict.INSUFFICIENT),
        (GONE_HALF | DAMAGED | {"is_only_damage": False}, Verdict.KNOWLEDGE),
        (A_FIFTH, Verdict.KNOWLEDGE),
        (GONE_ALL | {"in_format_now": 1.0, "modal_answer_now": 0.95}, Verdict.BOTH),
        (
            GONE_ALL | {"in_format_now": 1.0, "modal_answer_now": 0.95, "modal_answer_before": 0.8},
            Verdict.KNOWLEDGE,
        ),
        ({"modal_answer_now": 1.0}, Verdict.ALIGNMENT),
        ({"score_before": 0.05}, Verdict.INSUFFICIENT),
        ({"retained": (LOST_BELOW + KEPT_ABOVE) / 2}, Verdict.INSUFFICIENT),
        ({"retained_low": LOST_BELOW - 0.01}, Verdict.INSUFFICIENT),
        (
            GONE_ALL | {"in_format_now": 1.0, "retained_high": KEPT_ABOVE + 0.01},
            Verdict.INSUFFICIENT,
        ),
        ({"score_now": 0.95}, Verdict.INSUFFICIENT),
        ({"known_before": 0.3}, Verdict.INSUFFICIENT),
        ({"insufficient": "measures format"}, Verdict.INSUFFICIENT),
        (NO_ANSWERS, Verdict.INSUFFICIENT),
        (NO_ANSWERS | {"known_after_unrelated": 0.9}, Verdict.ALIGNMENT),
        (NO_ANSWERS | GONE_ALL, Verdict.INSUFFICIENT),
        (
            GONE_ALL | {"in_format_now": math.nan, "in_format_after_examples": math.nan},
            Verdict.KNOWLEDGE,
        ),
    ],
)
def test_each_rule(changed: dict[str, float], verdict: Verdict) -> None:
    found, reason = classify_loss(evidence(**changed))
    assert found is verdict, reason


def test_the_reason_names_the_evidence_and_the_damage() -> None:
    both = classify_loss(evidence(**GONE_HALF | {"known_paraphrased": 0.4}))[1]
    assert "the answer is given to a paraphrase (40%)" in both
    assert "weak knowledge" in classify_loss(evidence(**GONE_HALF))[1]
    assert "pruning explains the whole change" in classify_loss(evidence(**DAMAGED))[1]
    noise = classify_loss(evidence(**DAMAGED | {"damage": "noise"}))[1]
    assert "a training weaker than the noise would not be seen" in noise
    after_training = DAMAGED | {"is_only_damage": False}
    assert "by pruning too" in classify_loss(evidence(**after_training))[1]


def even(fit: np.ndarray, right: list[int]) -> AnswerTable:
    weights = np.full(len(fit), 1 / len(fit))
    return AnswerTable(np.zeros(len(fit)), weights, fit, np.array(right), shared=True)


def test_answer_bias_is_subtracted() -> None:
    """All probes get answer 0, and what tells them apart is small beside that."""
    fit = np.array([[9.9, 0.0, 0.1], [9.0, 1.0, 0.0], [9.0, 0.0, 1.0], [9.9, 0.1, 0.0]])
    assert chooses_correctly([even(fit, [0, 1, 2, 0])]).tolist() == [1, 1, 1, 1]


def test_what_single_tables_forgot_is_known_together() -> None:
    one = np.array([[1.0, 0.0], [0.2, 0.0], [0.0, 2.0], [0.0, 1.0]])
    two = np.array([[1.0, 0.0], [0.0, 2.0], [0.3, 0.0], [0.0, 1.0]])
    right = [0, 1, 1, 1]
    alone = [chooses_correctly([even(fit, right)]).mean() for fit in (one, two)]
    assert chooses_correctly([even(one, right), even(two, right)]).mean() == 1.0 > max(alone)


def test_the_size_of_a_side_does_not_move_the_middle() -> None:
    """Nine probes of one side and one of the other, a constant added to all."""
    reading = np.array([1.0] * 9 + [-1.0]) + 5.0
    sides = np.array([0] * 9 + [1])
    weights = 0.5 / np.bincount(sides)[sides]
    one = AnswerTable(reading, weights, np.stack([reading, -reading], 1), sides, shared=True)
    assert chooses_correctly([one]).tolist() == [1.0] * 10


def test_swapped_labels_are_found_on_other_probes() -> None:
    right = [0, 1, 2] * 4
    eye = np.eye(3)
    assert relabeled_accuracy(even(eye[right], right)).all()
    assert relabeled_accuracy(even(eye[[2, 0, 1] * 4], right)).all()  # each by another's name
    single = even(eye[[0, 1, 2]], [1, 2, 0])  # nothing to learn a rule from
    assert not relabeled_accuracy(single).any()
    noise = np.random.default_rng(0)
    blind = [
        relabeled_accuracy(even(noise.normal(size=(60, 3)), noise.integers(3, size=60).tolist()))
    ]
    assert np.mean(blind) < 0.45


def two_sides(reading: np.ndarray, each: tuple[int, int]) -> AnswerTable:
    """How strongly requests of two sides are refused, where those of the first should be."""
    sides = np.repeat([0, 1], each)
    margins = np.where(sides == 0, reading, -reading)
    fit = np.stack([reading, -reading], 1)
    weights = 0.5 / np.bincount(sides)[sides]
    return AnswerTable(margins, weights, fit, sides, shared=True, two_sided=True)


@pytest.mark.parametrize(
    ("refusals", "others", "lost"), [(20, 20, 20), (100, 100, 22), (20, 200, 5)]
)
@pytest.mark.parametrize("back", [0.0, 0.4, 1.0])
def test_the_other_side_tells_apart_and_waters_nothing_down(
    refusals: int, others: int, lost: int, back: float
) -> None:
    """Some refusals are lost; a share of these is still distinguished."""
    told = np.repeat([1.0, -1.0], (refusals, others))
    now, after = told.copy(), told.copy()
    now[:lost] = -1.0
    after[round(back * lost) : lost] = -1.0
    of = [two_sides(reading, (refusals, others)) for reading in (now, told, after)]
    found = RecoveryEvidence.from_tables(of[0], of[1], {"own": [of[2]], "reference": [of[1]]}, 0)
    assert found.n_lost == lost
    assert found.retained == pytest.approx(back, abs=0.08)
    assert found.retained_low - 0.01 <= found.retained <= found.retained_high
    verdict = classify_loss(found)[0]
    assert (verdict is Verdict.ALIGNMENT) == (back == 1.0 and lost >= 20)


def test_random_answers_show_no_knowledge() -> None:
    """Two answers, the rarer of which is lost; the label of neither matters."""
    for rare in (0, 1):
        right = [1 - rare] * 60 + [rare] * 30
        margins = np.where(np.array(right) == rare, -1.0, 1.0)
        weights = np.full(90, 1 / 90)
        blank = np.tile([0.3, 0.1], (90, 1)) + np.random.default_rng(0).normal(size=(90, 1)) * 1e-9
        now = AnswerTable(margins, weights, blank, np.array(right), shared=True)
        fit = np.eye(2)[right]
        before = AnswerTable(np.ones(90), weights, fit, np.array(right), shared=True)
        for own, left in ((blank, 0.0), (fit, 1.0)):
            look = AnswerTable(margins, weights, own, np.array(right), shared=True)
            found = RecoveryEvidence.from_tables(
                now, before, {"own": [look], "reference": [before]}, 0
            )
            assert found.n_lost == 30 and found.retained == left


def test_non_finite_margins_give_no_verdict() -> None:
    right = [0, 1] * 10
    fit, weights = np.eye(2)[right], np.full(20, 0.05)
    before = AnswerTable(np.ones(20), weights, fit, np.array(right), shared=True)
    now = AnswerTable(np.full(20, np.nan), weights, fit * np.nan, np.array(right), shared=True)
    found = RecoveryEvidence.from_tables(now, before, {"own": [now], "reference": [before]}, 0)
    assert found.n_lost == 20
    verdict, why = classify_loss(found)
    assert verdict is Verdict.INSUFFICIENT and "non-finite margins on 20" in why


def test_answer_form_is_measured_on_the_lost_probes() -> None:
    """On the other probes the answers are unchanged."""
    right = [0, 1] * 20
    fit, weights = np.eye(2)[right], np.full(40, 1 / 40)
    lost = np.arange(40) < 10
    first = np.where(lost, 9, np.where(np.arange(40) < 30, np.array(right), 7))
    inside = first < 2
    now = AnswerTable(np.where(lost, -1.0, 1.0), weights, fit, np.array(right), True, first, inside)
    began = np.where(np.arange(40) < 30, np.array(right), 7)
    before = AnswerTable(np.ones(40), weights, fit, np.array(right), True, began, began < 2)
    found = RecoveryEvidence.from_tables(now, before, {"own": [before], "reference": [before]}, 0)
    assert (found.in_format_before, found.in_format_now, found.in_format_after_examples) == (
        1.0,
        0.0,
        1.0,
    )
    assert found.modal_off_format_rate == 1.0


def test_the_best_of_the_tables_counts() -> None:
    """What is known without a reminder, or after an unrelated one, is known."""
    right = [0, 1] * 20
    weights, blank = np.full(40, 1 / 40), np.zeros((40, 2))
    knows, blind = (
        AnswerTable(np.full(40, -1.0), weights, fit, np.array(right), True)
        for fit in (np.eye(2)[right], blank)
    )
    before = AnswerTable(np.ones(40), weights, np.eye(2)[right], np.array(right), True)
    for now, unrelated, left in (
        (knows, blind, 1.0),
        (blind, knows, 1.0),
        (blind, blind, 0.0),
    ):
        looks = {"own": [blind], "unrelated": [unrelated], "reference": [before]}
        assert RecoveryEvidence.from_tables(now, before, looks, 0).retained == left


def test_few_probes_that_are_all_alike_leave_doubt() -> None:
    for n, most in ((4, 0.65), (60, 1.0)):
        right = [0, 1] * (n // 2)
        fit = np.eye(2)[right]
        weights = np.full(n, 1 / n)
        before, now = (
            AnswerTable(np.full(n, s), weights, fit, np.array(right), True) for s in (1, -1)
        )
        looks = {"own": [before], "reference": [before]}
        found = RecoveryEvidence.from_tables(now, before, looks, 0)
        assert found.retained == 1.0 and found.retained_low < most
        assert n < 60 or found.retained_low > 0.8


def test_modal_off_format_rate_needs_two_choices() -> None:
    def looked(first: list[int]) -> AnswerTable:
        inside = np.array([token < 10 for token in first])
        weights = np.full(len(first), 1 / len(first))
        return AnswerTable(
            np.zeros(len(first)), weights, first_choice=np.array(first), is_known_answer=inside
        )

    assert math.isnan(looked([1, 2, 30]).modal_off_format_rate)
    assert looked([1, 30, 30, 30]).modal_off_format_rate == 1.0
    assert looked([1, 30, 31, 32]).modal_off_format_rate == 0.0


def test_chance_is_the_rate_of_the_right_answer() -> None:
    right = [0, 1, 1, 1]
    assert chance_accuracy([even(np.eye(3)[right], right)]).tolist() == [0.25, 0.75, 0.75, 0.75]
    assert chance_accuracy([even(np.zeros((4, 3)), right)]).tolist() == [0.0] * 4
    options = AnswerTable(np.zeros(4), np.full(4, 0.25), np.zeros((4, 5)), np.zeros(4, int))
    assert chance_accuracy([options]).tolist() == [0.2] * 4
    assert np.isnan(chance_accuracy([AnswerTable(np.zeros(4), np.full(4, 0.25))])).all()


def test_how_many_probes_would_decide_is_computed() -> None:
    """8 of 10 known: the interval reaches under the limit, and that of so many does not."""
    few = RetainedKnowledge(known=0.8, known_before=1.0, guess_rate=0.0, n=10)
    times = few.times_needed(KEPT_ABOVE, LOST_BELOW, 0)
    assert few.interval(0)[0] < LOST_BELOW
    assert RetainedKnowledge(0.8, 1.0, 0.0, 10 * times).interval(0)[0] > LOST_BELOW
    assert RetainedKnowledge(0.8, 1.0, 0.0, 9 * times).interval(0)[0] < LOST_BELOW
    assert RetainedKnowledge(0.1, 1.0, 0.0, 40).times_needed(KEPT_ABOVE, LOST_BELOW, 0) == 1.0
    between = RetainedKnowledge(0.7, 1.0, 0.0, 10)
    assert math.isnan(between.times_needed(KEPT_ABOVE, LOST_BELOW, 0))


def test_reasons_say_what_would_decide_without_names_of_arguments() -> None:
    few = evidence(retained_low=LOST_BELOW - 0.01, probes_needed=3.2)
    assert "about 3.2 times as many would do" in classify_loss(few)[1]
    assert "more probes would not decide" in classify_loss(evidence(retained=0.7))[1]
    for changed in (NO_ANSWERS, NO_ANSWERS | GONE_ALL, STILL_OUTSIDE, {"retained": 0.7}):
        assert not re.search(r"\w=|_", classify_loss(evidence(**changed))[1])
