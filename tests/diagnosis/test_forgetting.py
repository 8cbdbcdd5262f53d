"""Continual-learning metrics against a slow reference, and against results by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from riprap import diagnosis
from riprap.errors import ConfigError

BY_HAND = [[0.9, 0.1, 0.0], [0.6, 0.8, 0.2], [0.7, 0.5, 1.0]]


def reference(a: list[list[float]], start: list[float] | None) -> dict[str, object]:
    """The definitions, term by term and in exact fractions."""
    exact = [[Fraction(x) for x in row] for row in a]
    stages = len(exact)
    total = Fraction(0)
    for row in exact:
        total += sum(row) / stages
    bwt, fm = Fraction(0), Fraction(0)
    for j in range(stages - 1):
        bwt += exact[stages - 1][j] - exact[j][j]
        best = exact[0][j]
        for t in range(stages - 1):
            if exact[t][j] > best:
                best = exact[t][j]
        fm += best - exact[stages - 1][j]
    before = [] if start is None else [[Fraction(x) for x in start]]
    rows = before + exact
    steps = [[rows[t][j] - rows[t - 1][j] for j in range(stages)] for t in range(1, len(rows))]
    drop = Fraction(0)
    for row in steps:
        for change in row:
            if -change > drop:
                drop = -change
    return {
        "average": float(total / stages),
        "backward_transfer": float(bwt / (stages - 1)),
        "forgetting": float(fm / (stages - 1)),
        "max_drop": float(drop),
        "interference": [[float(x) for x in row] for row in steps],
        "total_interference": float(sum(sum(row) for row in steps)),
    }


@pytest.mark.parametrize("stages", [2, 3, 4, 7])
@pytest.mark.parametrize("with_start", [False, True])
def test_equal_to_the_reference(stages: int, with_start: bool) -> None:
    noise = np.random.default_rng(stages)
    matrix = noise.random((stages, stages)).tolist()
    start = noise.random(stages).tolist() if with_start else None
    found = diagnosis.forgetting(matrix, start)
    for name, value in reference(matrix, start).items():
        np.testing.assert_allclose(getattr(found, name), value, atol=1e-12, err_msg=name)


def test_by_hand() -> None:
    found = diagnosis.forgetting(BY_HAND)
    assert found.average == pytest.approx(4.8 / 9)
    assert found.backward_transfer == pytest.approx((-0.2 - 0.3) / 2)
    assert found.forgetting == pytest.approx((0.2 + 0.3) / 2)
    assert found.max_drop == pytest.approx(0.3)
    assert found.total_interference == pytest.approx(2.2 - 1.0)
    np.testing.assert_allclose(found.interference, [[-0.3, 0.7, 0.2], [0.1, -0.3, 0.8]])


def test_stages_are_rows() -> None:
    turned = diagnosis.forgetting(np.array(BY_HAND).T)
    assert turned.backward_transfer != diagnosis.forgetting(BY_HAND).backward_transfer


def test_the_best_earlier_stage_counts_even_before_the_task_was_trained() -> None:
    matrix = [[1.0, 0.9, 0.0], [1.0, 0.5, 0.0], [1.0, 0.4, 1.0]]
    assert diagnosis.forgetting(matrix).forgetting == pytest.approx((0.0 + 0.5) / 2)
    assert diagnosis.forgetting(matrix).backward_transfer == pytest.approx((0.0 - 0.1) / 2)


def test_nothing_fell() -> None:
    found = diagnosis.forgetting([[0.5, 0.0], [0.6, 0.9]], start=[0.0, 0.0])
    assert found.max_drop == 0.0
    assert found.interference.shape == (2, 2)


@pytest.mark.parametrize(
    ("matrix", "start", "why"),
    [
        ([[1.0, 0.0]], None, "shape"),
        ([[1.0]], None, "shape"),
        ([1.0, 0.0], None, "shape"),
        ([[1.0, float("nan")], [0.5, 1.0]], None, "missing"),
        ([[1.0, None], [0.5, 1.0]], None, "missing"),
        ([[1.0, 0.0], [0.5]], None, "not an array"),
        ([[1.0, 0.0], [0.5, 1.0]], [0.0], "start has shape"),
        ([[1.0, 0.0], [0.5, 1.0]], [0.0, float("inf")], "start has 1"),
    ],
)
def test_half_a_matrix_is_refused(matrix: object, start: object, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        diagnosis.forgetting(matrix, start)  # type: ignore[arg-type]
