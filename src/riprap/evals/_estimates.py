"""Shares and means over rows with their intervals, and the agreement of two judges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from riprap.detectors import score_interval
from riprap.errors import ConfigError


@dataclass(frozen=True)
class Estimate:
    """A share, or the mean of numbers in [0, 1], over independent rows, with a 95 % interval."""

    value: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: Sequence[float | bool]) -> Estimate:
    """Estimate the mean of numbers in [0, 1], one for each independent row.

    Raises:
        ConfigError: there are none, or one is outside of [0, 1].
    """
    numbers = [float(value) for value in values]
    wrong = next((value for value in numbers if not 0 <= value <= 1), None)
    if wrong is not None:
        raise ConfigError(f"the value {wrong} of a row is outside of 0 to 1")
    if not numbers:
        raise ConfigError("there are no rows to estimate a share from; give at least one")
    share = math.fsum(numbers) / len(numbers)
    return Estimate(share, len(numbers), *score_interval(share, len(numbers)))


@dataclass(frozen=True)
class Agreement:
    """Agreement of two judges, or of a judge and labels, on yes-or-no questions.

    Attributes:
        same: share of rows on which both say the same.
        kappa: Cohen's kappa: 1 for perfect agreement, 0 for that of chance; NaN where both give
            one and the same answer to all rows.
        recall, specificity: share of the second's yes, and of its no, that the first says too;
            None where the second never says it.
    """

    same: Estimate
    kappa: float
    recall: Estimate | None
    specificity: Estimate | None


def agreement(found: Sequence[bool], wanted: Sequence[bool]) -> Agreement:
    """Compare the answers of a judge with labels, or with those of another judge.

    Raises:
        ConfigError: there are no rows, or not as many of both.
    """
    if len(found) != len(wanted):
        raise ConfigError(f"{len(found)} answers of one judge and {len(wanted)} of the other")
    pairs = [(bool(a), bool(b)) for a, b in zip(found, wanted, strict=True)]
    same = estimate([a is b for a, b in pairs])
    first, second = (sum(pair[i] for pair in pairs) / len(pairs) for i in (0, 1))
    chance = first * second + (1 - first) * (1 - second)
    kappa = (same.value - chance) / (1 - chance) if chance < 1 else math.nan
    yes = [a for a, b in pairs if b]
    no = [not a for a, b in pairs if not b]
    return Agreement(same, kappa, estimate(yes) if yes else None, estimate(no) if no else None)
