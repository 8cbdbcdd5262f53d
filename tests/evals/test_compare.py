"""Changes between two results of evals: what is called worse, and how wide intervals are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from riprap.errors import ConfigError
from riprap.evals import (
    EvalResult,
    EvalRow,
    Outcome,
    TaskResult,
    change_interval,
    compare_evals,
    compare_task,
    estimate,
)
from riprap.evals._compare import smallest_seen_share


def task(name: str, values: list[float], lower: bool = False, judge: str = "") -> TaskResult:
    rows = tuple(EvalRow(str(at), {"metric": value}) for at, value in enumerate(values))
    judges = (judge,) if judge else ()
    return TaskResult(name, {"metric": estimate(values)}, lower, rows, judges=judges)


def evals(*tasks: TaskResult, model: str = "m", **settings: int) -> EvalResult:
    return EvalResult(model, tasks, settings=dict(settings))


def test_each_task_has_its_change_and_its_outcome() -> None:
    before = evals(
        task("kept", [1.0] * 40),
        task("fell", [1.0] * 40),
        task("rose", [0.0] * 40, True, "refusal_rules"),
        task("few", [1.0] * 3),
        task("never", [0.0] * 40),
        task("gone", [1.0] * 40),
    )
    after = evals(
        task("kept", [1.0] * 39 + [0.0]),
        task("fell", [0.0] * 20 + [1.0] * 20),
        task("rose", [1.0] * 10 + [0.0] * 30, True, "refusal_rules"),
        task("few", [1.0] * 3),
        task("never", [0.0] * 40),
        task("new", [1.0]),
    )
    found = {own.task: own for own in compare_evals(before, after)}
    assert {name: own.outcome for name, own in found.items()} == {
        "kept": Outcome.NOT_WORSE,
        "fell": Outcome.WORSE,
        "rose": Outcome.WORSE,
        "few": Outcome.TOO_FEW,
        "never": Outcome.NOTHING_TO_LOSE,
        "gone": Outcome.NOT_COMPARED,
        "new": Outcome.NOT_COMPARED,
    }
    fell, rose = found["fell"], found["rose"]
    assert (fell.change, fell.worse, fell.better, fell.n) == (-0.5, 20, 0, 40)
    assert fell.low < -0.5 < fell.high < 0 < rose.low < 0.25 < rose.high
    assert rose.judge == "refusal_rules" and not fell.judge
    assert rose.seen_value > 0.0 and found["kept"].seen_value < 1.0
    assert "TUNED lacks" in found["gone"].missing and "BASE" in found["new"].missing


@pytest.mark.parametrize(("worse", "better"), [(0.05, 0.05), (0.3, 0.02), (0.5, 0.1), (0.9, 0.0)])
@pytest.mark.parametrize("n", [20, 100])
def test_intervals_hold_the_true_change(n: int, worse: float, better: float) -> None:
    """About 95 in 100, on paired rows of which some become worse and some better."""
    random, held = np.random.default_rng(0), 0
    for _ in range(1000):
        draw = random.random(n)
        changes = np.where(draw < worse, -1.0, np.where(draw < worse + better, 1.0, 0.0))
        low, high = change_interval(changes.tolist())
        held += low <= better - worse <= high
    assert held >= 930
    assert change_interval([-1.0] * n)[0] == -1.0
    small = change_interval([-0.1, 0.1] * n)  # of F1, which changes less than a whole row
    assert small[1] - small[0] < sum(map(abs, change_interval([-1.0, 1.0] * n)))


def exact_power(n: int, worse: float, better: float, level: float) -> float:
    """Sum the probabilities of all numbers of worse and better rows that are called a loss."""
    power = 0.0
    for lost in range(1, n + 1):
        for won in range(n - lost + 1):
            if stats.binom.sf(lost - 1, lost + won, 0.5) > level:
                break
            counts = [lost, won, n - lost - won]
            power += float(stats.multinomial.pmf(counts, n, [worse, better, 1 - worse - better]))
    return power


@pytest.mark.parametrize("level", [0.05, 0.05 / 6])
@pytest.mark.parametrize(("n", "better"), [(12, 0), (20, 1), (30, 2), (40, 4), (40, 10)])
def test_a_loss_that_is_called_visible_is_seen_4_times_in_5(
    n: int, better: int, level: float
) -> None:
    share = smallest_seen_share(n, better, level)
    assert share is not None
    assert 0.8 - 1e-9 <= exact_power(n, share, better / n, level) < 0.8001
    assert exact_power(n, share - 0.01, better / n, level) < 0.8


def test_a_loss_that_no_share_of_rows_shows_is_none() -> None:
    assert smallest_seen_share(4, 0, 0.05) is None  # four of four: p = 0.062
    assert smallest_seen_share(20, 8, 0.05) is None
    assert smallest_seen_share(20, 20, 0.05) is None
    assert exact_power(20, 0.6, 0.4, 0.05) < 0.8


def test_rows_that_become_better_hide_a_loss() -> None:
    """Also where values are no zeros and ones: worse rows may lose all, better ones gain little."""
    start, end = [1.0] * 60 + [0.0] * 40, [1.0] * 60 + [0.0] * 40
    none = compare_task(task("t", start), task("t", end))
    for at in range(4):
        end[at], end[-1 - at] = 0.0, 1.0
    some = compare_task(task("t", start), task("t", end))
    assert (some.worse, some.better, some.change) == (4, 4, 0.0)
    assert none.outcome is some.outcome is Outcome.NOT_WORSE
    assert some.seen < none.seen - 0.04
    end = [own if own == was else 0.1 for was, own in zip(start, end, strict=True)]
    slight = compare_task(task("t", start), task("t", end))
    assert slight.better == 4 and slight.seen == pytest.approx(some.seen - 4 * 0.9 / 100)
    low = [1 - own for own in start], [1 - own for own in end]
    turned = compare_task(task("t", low[0], True), task("t", low[1], True))
    assert turned.seen == pytest.approx(slight.seen)
    assert turned.seen_value == pytest.approx(1 - slight.seen)


def test_a_task_that_rose_has_not_too_few_rows() -> None:
    start = [1.0] * 10 + [0.0] * 10
    rose = compare_task(task("t", start), task("t", [1.0] * 16 + [0.0] * 4))
    assert rose.is_better and rose.outcome is Outcome.NOT_WORSE and rose.seen < rose.good / 2
    hardly = compare_task(task("t", start), task("t", [1.0] * 14 + [0.0] * 6))
    assert not hardly.is_better and hardly.outcome is Outcome.TOO_FEW
    assert math.isnan(compare_task(task("t", [0.0] * 9), task("t", [0.0] * 9)).seen)


def test_what_cannot_be_compared_is_refused() -> None:
    one = evals(task("boolq", [1.0] * 20), seed=0)
    with pytest.raises(ConfigError, match=r"measured differently \(seed\)"):
        compare_evals(one, evals(task("boolq", [1.0] * 20), seed=1))
    with pytest.raises(ConfigError, match=r"measured differently \(samples\)"):
        compare_evals(evals(task("boolq", [1.0]), seed=0, samples=2), one)
    with pytest.raises(ConfigError, match="no task in common"):
        compare_evals(one, evals(task("arc", [1.0] * 20), seed=0))
    a, b = (evals(task("boolq", [1.0], judge=own)) for own in "ab")
    with pytest.raises(ConfigError, match="judge of boolq"):
        compare_evals(a, b)
