"""Changes of metrics between two results of evals, on the rows that both models answered.

A metric got worse if more rows became worse than better, by a sign test on the rows that changed.
It needs no assumption on how values are distributed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
from scipy import stats

from riprap.errors import ConfigError
from riprap.evals._result import EvalResult, TaskResult

ALPHA = 0.05  # that any metric of a comparison is called worse by chance
CHANCE = 0.8  # with which a loss is called visible
Z95 = float(stats.norm.ppf(0.975))


class Outcome(StrEnum):
    """Outcome of the comparison of a metric."""

    WORSE = "worse"
    NOT_WORSE = "not shown to be worse"
    TOO_FEW = "too few rows"  # a loss of half would be missed more often than 1 time in 5
    NOTHING_TO_LOSE = "nothing to lose"  # the base has the worst value
    NOT_COMPARED = "not compared"


@dataclass(frozen=True)
class TaskChange:
    """Change of a task's main metric from a base to a tuned model.

    Attributes:
        judge: the one whose verdict counts; empty: the task has none.
        n: rows that both models answered; 0: nothing was compared.
        unpaired: further rows of the base.
        before, after: means over these rows.
        low, high: 95 % interval of `after - before` by Agresti and Min (2005), on paired rows.
        worse, better: number of rows that became worse, and better.
        p: of the one-sided sign test; the metric got worse from `level` down.
        good: value of the base over all of its rows; one minus it where low is good.
        seen: largest true value of `good` that would be called a loss 4 times in 5, if as large a
            share of rows became better as here, by as much, and rows that became worse had the
            worst value.
        missing: why nothing was compared; empty otherwise.
    """

    task: str
    metric: str
    lower_is_better: bool
    judge: str = ""
    n: int = 0
    unpaired: int = 0
    before: float = math.nan
    after: float = math.nan
    low: float = math.nan
    high: float = math.nan
    worse: int = 0
    better: int = 0
    p: float = math.nan
    level: float = ALPHA
    good: float = math.nan
    seen: float = math.nan
    missing: str = ""

    @property
    def change(self) -> float:
        """`after - before`; NaN if nothing was compared."""
        return self.after - self.before

    @property
    def is_better(self) -> bool:
        """True if more rows became better than worse, by the same test, and the mean did too.

        The whole interval of the change must be on the good side of 0: rows that became a little
        better may be more, and lose less than others lost.
        """
        gained = self.high < 0 if self.lower_is_better else self.low > 0
        return gained and sign_test(self.better, self.worse) <= self.level

    @property
    def outcome(self) -> Outcome:
        """Outcome of the comparison."""
        if self.missing:
            return Outcome.NOT_COMPARED
        if self.p <= self.level:
            return Outcome.WORSE
        if not self.good:
            return Outcome.NOTHING_TO_LOSE
        if self.is_better:  # after a loss of half, this is rarer than `level`
            return Outcome.NOT_WORSE
        return Outcome.TOO_FEW if self.seen < self.good / 2 else Outcome.NOT_WORSE

    @property
    def seen_value(self) -> float:
        """Value of the metric that would be missed 1 time in 5."""
        return 1 - self.seen if self.lower_is_better else self.seen


def differences(before: EvalResult, after: EvalResult) -> list[str]:
    """Return in what two results were measured differently, beside the model."""
    names = dict.fromkeys([*before.settings, *after.settings])
    differ = [k for k in names if before.settings.get(k) != after.settings.get(k)]
    differ = [key for key in differ if key != "rows"]  # rows are compared one by one
    judges = {own.task: own.judges[:1] for own in before.tasks}
    return differ + [
        f"judge of {own.task}"
        for own in after.tasks
        if judges.get(own.task, own.judges[:1]) != own.judges[:1]
    ]


def require_same_measure(before: EvalResult, after: EvalResult) -> None:
    """Refuse results that differ in more than the model.

    Raises:
        ConfigError: settings or judges differ.
    """
    differ = differences(before, after)
    if differ:
        raise ConfigError(
            f"the two results were measured differently ({', '.join(differ)}): measure both with "
            "the same options"
        )


def compare_evals(before: EvalResult, after: EvalResult) -> tuple[TaskChange, ...]:
    """Compare the main metric of each task of a base and of a tuned model, row by row.

    At most 5 % of comparisons without any loss call a task worse.

    Raises:
        ConfigError: the results were measured differently, or have no task in common.
    """
    require_same_measure(before, after)
    own = {task.task: task for task in after.tasks}
    if not any(task.task in own for task in before.tasks):
        raise ConfigError(
            f"the evals of {before.model} and of {after.model} have no task in common: measure "
            "both with the same suites"
        )
    level = ALPHA / len(before.tasks)
    changes = [compare_task(task, own.get(task.task), level) for task in before.tasks]
    known = [task.task for task in before.tasks]
    changes += [
        TaskChange(task.task, task.main, task.lower_is_better, missing="not a task of BASE")
        for task in after.tasks
        if task.task not in known
    ]
    return tuple(changes)


def compare_task(before: TaskResult, after: TaskResult | None, level: float = ALPHA) -> TaskChange:
    """Compare the main metric of a task, row by row.

    Args:
        after: that of the tuned model; None: it was not measured.
        level: of the sign test.
    """
    metric, judge = before.main, "".join(before.judges[:1])
    facts = (before.task, metric, before.lower_is_better, judge)
    error = f"BASE: {before.error}" if before.error else ""
    if after is None:
        error = error or "TUNED lacks this task: measure it with the same suites"
    elif after.error:
        error = error or f"TUNED: {after.error}"
    if after is None or error:
        return TaskChange(*facts, missing=error)
    old = {row.key: row.values[metric] for row in before.rows if metric in row.values}
    pairs = [
        (old[row.key], row.values[metric])
        for row in after.rows
        if row.key in old and metric in row.values
    ]
    if not pairs:
        return TaskChange(*facts, missing="no row is in both results")
    changes = [new - was for was, new in pairs]
    gains = [-own for own in changes] if before.lower_is_better else changes
    worse, better = sum(own < 0 for own in gains), sum(own > 0 for own in gains)
    was, now = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    low, high = change_interval(changes)
    good = before.scores[metric].value
    good = 1 - good if before.lower_is_better else good
    share = smallest_seen_share(len(pairs), better, level)
    gained = math.fsum(own for own in gains if own > 0) / len(pairs)
    # Not even the loss of everything is seen where no share is.
    seen = good - 1 if share is None else good - (share - gained)
    return TaskChange(
        *facts,
        n=len(pairs),
        unpaired=len(old) - len(pairs),
        before=was,
        after=now,
        low=low,
        high=high,
        worse=worse,
        better=better,
        p=sign_test(worse, better),
        level=level,
        good=good,
        seen=seen if good else math.nan,
    )


def change_interval(changes: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean change, of one change in [-1, 1] for each row.

    Agresti and Min (2005): two rows are added, on which a half each got better, got worse, stayed
    right and stayed wrong, so that the interval is not empty where no row changes.
    """
    n = len(changes) + 2
    mean = math.fsum(changes) / n
    variance = ((math.fsum(own * own for own in changes) + 1) / n - mean * mean) / n
    half = Z95 * math.sqrt(variance)
    return max(-1.0, mean - half), min(1.0, mean + half)


def sign_test(more: int, fewer: int) -> float:
    """Return the p-value of the one-sided sign test, for more rows of one kind than of another."""
    changed = more + fewer
    return float(stats.binomtest(more, changed, alternative="greater").pvalue) if changed else 1.0


@lru_cache(maxsize=1024)  # a live page asks again and again
def smallest_seen_share(n: int, better: int, level: float) -> float | None:
    """Return the smallest share of worse rows that the sign test calls a loss 4 times in 5.

    Each of `n` rows becomes worse with this probability, and better with probability `better / n`.
    The power is exact: a sum over the number of rows that change. It rises with the share.

    Args:
        level: of the test.

    Returns:
        The share, up to 1e-6 too large; None: none is seen, not even that of all other rows.
    """
    changed = np.arange(n + 1)
    needed = stats.binom.isf(level, changed, 0.5) + 1  # worse rows of the changed ones, at least

    def power(worse: float) -> float:
        either = min(1.0, worse + better / n)
        shares = stats.binom.pmf(changed, n, either)
        return float(shares @ stats.binom.sf(needed - 1, changed, min(1.0, worse / either)))

    missed, seen = 0.0, 1 - better / n
    if not seen or power(seen) < CHANCE:
        return None
    while seen - missed > 1e-6:
        middle = (missed + seen) / 2
        missed, seen = (missed, middle) if power(middle) >= CHANCE else (middle, seen)
    return seen
