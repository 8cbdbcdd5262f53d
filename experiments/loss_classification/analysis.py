"""How often verdicts are right, and which single number would have done as well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise, product

import numpy as np
from scipy.stats import binomtest

from experiments.loss_classification.checkpoints import NOTHING
from experiments.loss_classification.simulate import Found
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


def verified(one: Found, tolerance: float) -> bool:
    """Whether the tests of the truth agree with what was done to the checkpoint."""
    return abs(one.knows - one.left) <= tolerance


def accuracy(found: Sequence[Found]) -> tuple[int, int, float, float]:
    """Right verdicts, those that were given at all, and the exact 95 % interval of their share.

    `insufficient evidence` is counted apart, as are checkpoints that lost nothing.
    """
    given = [one for one in found if one.truth in GIVEN and one.verdict in GIVEN]
    right = sum(one.verdict == one.truth for one in given)
    interval = binomtest(right, max(len(given), 1)).proportion_ci(0.95)
    return right, len(given), float(interval.low), float(interval.high)


def confusion(found: Iterable[Found]) -> dict[str, Counter[str]]:
    """By truth, how often each verdict was given."""
    table: dict[str, Counter[str]] = {truth: Counter() for truth in (*GIVEN, NOTHING)}
    for one in found:
        table[one.truth][one.verdict] += 1
    return table


Rule = tuple[float, float, tuple[str, ...]]


def fitted(found: Sequence[Found], number: str) -> Rule | None:
    """The best rule of two thresholds by one number: which verdict below, between and above.

    None where the number was never measured.
    """
    pairs = _pairs(found, number)
    if not pairs:
        return None
    values = sorted({value for value, _ in pairs})
    cuts = [-np.inf, *((a + b) / 2 for a, b in pairwise(values)), np.inf]
    rules = (
        (low, high, verdicts)
        for low, high in combinations(cuts, 2)
        for verdicts in product(GIVEN, repeat=3)
    )
    return max(rules, key=lambda rule: sum(_says(rule, v) == truth for v, truth in pairs))


def right_by(rule: Rule | None, found: Sequence[Found], number: str) -> tuple[int, int]:
    """How many checkpoints a rule gets right, of those for which its number was measured."""
    pairs = _pairs(found, number)
    if rule is None:
        return 0, 0
    return sum(_says(rule, value) == truth for value, truth in pairs), len(pairs)


def _says(rule: Rule, value: float) -> str:
    low, high, verdicts = rule
    return verdicts[int(value > low) + int(value > high)]


def _pairs(found: Sequence[Found], number: str) -> list[tuple[float, str]]:
    read = [(one.evidence[number], one.truth) for one in found if one.truth in GIVEN]
    return [(v, truth) for v, truth in read if v is not None and not np.isnan(v)]
