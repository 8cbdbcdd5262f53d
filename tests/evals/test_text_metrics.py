"""Scores of texts against references that were written apart from them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from riprap.evals import (
    final_number,
    marked_number,
    normalize_answer,
    squad_prediction,
    squad_scores,
)

PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
TEXTS = st.text(
    st.sampled_from("aAnthe THE0 1.,-'\"\t\n“”éß—\u00a0\ud800x"), max_size=30
) | st.sampled_from(["the The THE", "a-an-the", "anthem", "the", "A.", "\x00the", "theatre a"])


def reference_words(text: str) -> list[str]:
    """Words by the rules of SQuAD, character by character."""
    kept = "".join(char for char in text.lower() if char not in PUNCTUATION)
    pieces: list[str] = []
    run = ""
    for char in kept:  # runs of word characters, and what stands between them
        if char.isalnum() or char == "_":
            run += char
        else:
            pieces += [run, char]
            run = ""
    pieces.append(run)
    rejoined = "".join(" " if piece in ("a", "an", "the") else piece for piece in pieces)
    return rejoined.split()


def reference_f1(prediction: str, gold: str) -> float:
    a, b = reference_words(prediction), reference_words(gold)
    if not a or not b:
        return float(a == b)
    same = sum(min(n, Counter(b)[word]) for word, n in Counter(a).items())
    if same == 0:
        return 0.0
    precision, recall = same / len(a), same / len(b)
    return 2 * precision * recall / (precision + recall)


@given(TEXTS)
def test_normalization(text: str) -> None:
    assert normalize_answer(text).split() == reference_words(text)


@given(TEXTS, st.lists(TEXTS, max_size=3))
def test_squad_takes_the_best_gold_answer(prediction: str, golds: list[str]) -> None:
    kept = [gold for gold in golds if reference_words(gold)] or [""]
    exact, f1 = squad_scores(prediction, golds)
    assert exact == max(reference_words(prediction) == reference_words(g) for g in kept)
    assert f1 == pytest.approx(max(reference_f1(prediction, g) for g in kept))
    assert 0 <= exact <= f1 <= 1 or exact == f1 == 1


@pytest.mark.parametrize(
    ("answer", "prediction"),
    [
        ("The Rhine.\nIt is long.", "The Rhine."),
        ("  \n\n 1815", "1815"),
        ("Unanswerable", ""),
        ("“unanswerable.", "“unanswerable."),
        ('"Unanswerable."', ""),
        ("No answer is given", ""),
        ("", ""),
    ],
)
def test_what_a_model_says_to_a_question_without_an_answer(answer: str, prediction: str) -> None:
    assert squad_prediction(answer) == prediction


def test_no_answer_is_right_only_where_there_is_none() -> None:
    assert squad_scores("", []) == (1.0, 1.0)
    assert squad_scores("", ["Rhine"]) == (0.0, 0.0)
    assert squad_scores("Rhine", []) == (0.0, 0.0)


@given(st.integers(-(10**9), 10**9), st.sampled_from(["", "$"]), st.booleans())
def test_the_marked_number_counts_however_it_is_written(n: int, sign: str, commas: bool) -> None:
    shown = f"{abs(n):,}" if commas else str(abs(n))
    text = f"12 and 13 make 25.\n#### {'-' if n < 0 else ''}{sign}{shown}.\nDone 77"
    assert marked_number(text) == final_number(text) == n


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It costs $1,200.50.", "1200.50"),
        ("first 3, then 4", "4"),
        ("none at all", None),
        ("#### none 5", "5"),
        ("5 - 3 = 2", "2"),
        ("-7", "-7"),
        ("٣ apples", "3"),
        ("", None),
    ],
)
def test_the_final_number(text: str, number: str | None) -> None:
    found = final_number(text)
    assert (None if found is None else str(found)) == number


@given(st.text(max_size=60))
def test_hostile_texts_have_scores(text: str) -> None:
    final_number(text), squad_prediction(text), squad_scores(text, [text])
