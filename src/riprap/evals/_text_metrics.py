"""Scores of generated texts: exact match and F1 of SQuAD 2.0, the final number of GSM8K."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

NO_ANSWER = "unanswerable"  # what a model is asked to say where the text does not say it
_DECLINED = ("unanswerable", "no answer", "not answerable", "cannot be answered")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
_MARK = "####"


def normalize_answer(text: str) -> str:
    """Return a text as SQuAD compares it: lower case, no punctuation, no articles, single spaces.

    Only the punctuation of ASCII is left out, as there.
    """
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def squad_prediction(answer: str) -> str:
    """Return the first line of an answer; "" where it says that there is no answer."""
    line = next((line.strip() for line in answer.splitlines() if line.strip()), "")
    return "" if normalize_answer(line).startswith(_DECLINED) else line


def squad_scores(prediction: str, golds: Sequence[str]) -> tuple[float, float]:
    """Return exact match and F1 of a prediction, by the best of the gold answers (SQuAD 2.0).

    Args:
        prediction: "" stands for "there is no answer".
        golds: none, or only empty ones: there is no answer.
    """
    kept = [gold for gold in golds if normalize_answer(gold)] or [""]
    exact = max(float(normalize_answer(prediction) == normalize_answer(gold)) for gold in kept)
    return exact, max(_f1(prediction, gold) for gold in kept)


def _f1(prediction: str, gold: str) -> float:
    """Return the F1 of the bags of words; without words in one, 1 if both have none."""
    found, wanted = normalize_answer(prediction).split(), normalize_answer(gold).split()
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))


def marked_number(text: str) -> Decimal | None:
    """Return the number after the first "####", GSM8K's mark; None without one."""
    _, mark, rest = text.partition(_MARK)
    found = _NUMBER.match(rest.lstrip()) if mark else None
    return _value(found[0]) if found else None


def final_number(text: str) -> Decimal | None:
    """Return the number after "####"; without it, the last number of a text; None: no number."""
    marked = marked_number(text)
    if marked is not None:
        return marked
    numbers = _NUMBER.findall(text)
    return _value(numbers[-1]) if numbers else None


def _value(text: str) -> Decimal:
    return Decimal(text.replace(",", "").replace("$", ""))
