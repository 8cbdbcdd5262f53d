"""Changes between two results of evals: what is called worse, and how wide intervals are."""

from __future__ import annotations

import numpy as np
import pytest

from riprap.errors import ConfigError
from riprap.evals import (
    EvalResult,
    EvalRow,
    Outcome,
    TaskResult,
    change_interval,
    compare_evals,
    estimate,
)


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
