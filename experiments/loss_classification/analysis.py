"""Accuracy of verdicts, compared with the best rule on a single number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise, product

import numpy as np
from scipy.stats import binomtest

from experiments.loss_classification.checkpoints import NOTHING
from experiments.loss_classification.simulate import ClassifiedCheckpoint
from riprap.diagnosis import Verdict

GIVEN = (str(Verdict.ALIGNMENT), str(Verdict.KNOWLEDGE), str(Verdict.BOTH))
NONE = str(Verdict.INSUFFICIENT)
SINGLE = {
    "known_own": "known after ten own examples",
    "known_irrelevant": "known after irrelevant examples",
    "known_now": "known without a reminder",
    "retained": "share of the knowledge left",
    "unsaid": "known and not said",
    "kind_now": "answers of the right form",
    "score_now": "the score itself",
    "regained_own": "score regained by ten own examples",
    "regained_irrelevant": "score regained by irrelevant examples",
    "back at": "share of the way back at which the score returns",
    "decodable": "decodability retained",
}


def verified(one: ClassifiedCheckpoint, tolerance: float) -> bool:
    """Tell if the measured knowledge agrees with the constructed one."""
    return abs(one.knows - one.left) <= tolerance


def accuracy(checkpoints: Sequence[ClassifiedCheckpoint]) -> tuple[int, int, float, float]:
    """Return right verdicts, verdicts given, and the exact 95 % interval of their ratio.

    `insufficient evidence` and checkpoints that lost nothing are not counted.
    """
    given = [one for one in checkpoints if one.truth in GIVEN and one.verdict in GIVEN]
    right = sum(one.verdict == one.truth for one in given)
    interval = binomtest(right, max(len(given), 1)).proportion_ci(0.95)
    return right, len(given), float(interval.low), float(interval.high)


def confusion(checkpoints: Iterable[ClassifiedCheckpoint]) -> dict[str, Counter[str]]:
    """Count the verdicts by truth."""
    table: dict[str, Counter[str]] = {truth: Counter() for truth in (*GIVEN, NOTHING)}
    for one in checkpoints:
        table[one.truth][one.verdict] += 1
    return table


Rule = tuple[float, float, tuple[str, ...]]


def fitted(checkpoints: Sequence[ClassifiedCheckpoint], number: str) -> Rule | None:
    """Fit the best rule of two thresholds on one number: a verdict below, between and above.

    None if the number was never measured.
    """
    pairs = _pairs(checkpoints, number)
    if not pairs:
        return None
    values = sorted({value for value, _ in pairs})
    cuts = [-np.inf, *((a + b) / 2 for a, b in pairwise(values)), np.inf]
    rules = (
        (low, high, verdicts)
        for low, high in combinations(cuts, 2)
        for verdicts in product(GIVEN, repeat=3)
    )
    return max(rules, key=lambda rule: sum(_apply(rule, v) == truth for v, truth in pairs))


def right_by(
    rule: Rule | None, checkpoints: Sequence[ClassifiedCheckpoint], number: str
) -> tuple[int, int]:
    """Count the checkpoints that a rule gets right, of those with its number measured."""
    pairs = _pairs(checkpoints, number)
    if rule is None:
        return 0, 0
    return sum(_apply(rule, value) == truth for value, truth in pairs), len(pairs)


def _apply(rule: Rule, value: float) -> str:
    low, high, verdicts = rule
    return verdicts[int(value > low) + int(value > high)]


def _pairs(checkpoints: Sequence[ClassifiedCheckpoint], number: str) -> list[tuple[float, str]]:
    read = [(one.evidence[number], one.truth) for one in checkpoints if one.truth in GIVEN]
    return [(v, truth) for v, truth in read if v is not None and not np.isnan(v)]
