"""Linear probes against ridge regression written out, and what each of the two can see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from journeys import Journey
from riprap import Behavior, ReadingStatus
from riprap.evaluation import ProbeResult, ProtectedGradients
from riprap.signals import LinearProbe, ProbeView
from riprap.signals.features._linear_probe import RIDGE, accuracy, fit_plane, train_test_masks
from views import values


def plain_ridge(here: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same plane from the primal: weighted least squares in d dimensions."""
    middle = (here.mean(0) + there.mean(0)) / 2
    x = np.concatenate([here, there]) - middle
    y = np.array([1.0] * len(here) + [-1.0] * len(there))
    weights = np.array([1 / len(here)] * len(here) + [1 / len(there)] * len(there))
    scatter = (x * weights[:, None]).T @ x
    ridge = RIDGE * np.trace(scatter) * np.eye(x.shape[1])
    return np.linalg.solve(scatter + ridge, x.T @ (weights * y)), middle


def plain_accuracy(normal: np.ndarray, middle: np.ndarray, *sides: np.ndarray) -> float:
    right = [((side - middle) @ normal > 0).mean() for side in sides]
    return float((right[0] + 1 - right[1]) / 2)


@pytest.mark.parametrize(("n", "m", "d"), [(4, 3, 16), (30, 12, 5), (9, 9, 40)])
def test_the_dual_gives_the_primal_plane(n: int, m: int, d: int) -> None:
    here, there = torch.randn(n, d).double() + 0.5, torch.randn(m, d).double()
    normal, middle = fit_plane(here, there)
    expected, point = plain_ridge(here.numpy(), there.numpy())
    np.testing.assert_allclose(normal.numpy(), expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(middle.numpy(), point, rtol=1e-9)


def test_the_larger_side_wins_nothing_by_its_size() -> None:
    here, there = torch.randn(400, 3).double(), torch.randn(10, 3).double()
    assert 0.2 < accuracy(fit_plane(here, there), here, there) < 0.85


def test_every_row_is_left_out_once() -> None:
    parts = list(train_test_masks(7, 12))
    assert len(parts) == 5
    assert torch.stack([out.long() for _, out, _, _ in parts]).sum(0).tolist() == [1] * 7
    assert torch.stack([out.long() for _, _, _, out in parts]).sum(0).tolist() == [1] * 12
    assert len(list(train_test_masks(2, 9))) == 2


def readings(then: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor]) -> dict[str, float]:
    behaviors = [
        Behavior("b", None, lambda m, p: p, contrast="c"),
        Behavior("c", None, lambda m, p: p, contrast="b"),
    ]

    def view(step: int, sides: tuple[Tensor, Tensor]) -> ProbeView:
        looks = {
            name: ProbeResult(np.ones(len(rows)), activations={"layer": rows})
            for name, rows in zip("bc", sides, strict=True)
        }
        return ProbeView(step, behaviors, looks, ProtectedGradients(), "layer", torch.nn.Identity())

    signal = LinearProbe()
    signal.start(view(0, then))
    found = signal.on_probe_evaluation(view(5, now))
    return {r.signal: r.value for r in found if r.behavior == "b" and r.value is not None}


def test_noise_is_not_told_apart_although_there_are_more_directions_than_rows() -> None:
    found = []
    for _ in range(60):
        sides = torch.randn(10, 80), torch.randn(10, 80)
        found.append(readings(sides, sides)["linear_probe_frozen"])
    assert abs(np.mean(found) - 0.5) < 4 * np.std(found) / np.sqrt(len(found))
    sides = torch.randn(10, 80).double(), torch.randn(10, 80).double()
    assert accuracy(fit_plane(*sides), *sides) == 1  # what it would read without held-out rows


def test_a_behavior_that_moved_is_lost_to_the_frozen_linear_probe_alone() -> None:
    here, there = torch.randn(20, 8), torch.randn(20, 8)
    here[:, 0] += 8
    then, now = (here, there), (here.roll(3, 1), there.roll(3, 1))
    assert readings(then, then) == {"linear_probe_frozen": 1, "linear_probe_refitted": 1}
    moved = readings(then, now)
    assert moved["linear_probe_refitted"] > 0.95
    assert moved["linear_probe_frozen"] < 0.8


def test_a_behavior_that_is_gone_is_lost_to_both() -> None:
    here, there = torch.randn(40, 8), torch.randn(40, 8)
    gone = readings((here + 8, there), (here, there))
    assert all(0.2 < value < 0.8 for value in gone.values())


def test_on_a_model() -> None:
    journey = Journey(LinearProbe())
    for readings, sets in ((journey.first, journey.then), (journey.later, journey.now)):
        for kind in ("frozen", "refitted"):
            scores = []
            for kept, out, also, other in train_test_masks(4, 3):
                source = journey.then if kind == "frozen" else sets
                plane = plain_ridge(source["refusal"][kept], source["over"][also])
                left = sets["refusal"][out], sets["over"][other]
                scores.append(plain_accuracy(*plane, *left))
            found = values(readings, f"linear_probe_{kind}")
            assert found.keys() == {"refusal", "over"}
            assert found["refusal"] == pytest.approx(np.mean(scores))
    lone = [r for r in journey.first if r.behavior == "lone"]
    assert [(r.state, "contrast" in r.detail) for r in lone] == [(ReadingStatus.NOT_RUN, True)]


def test_one_row_a_side_is_too_few() -> None:
    behavior = Behavior("b", None, lambda m, p: p, contrast="b")
    look = ProbeResult(np.ones(1), activations={"layer": torch.randn(1, 4)})
    view = ProbeView(0, [behavior], {"b": look}, ProtectedGradients(), "layer", torch.nn.Identity())
    signal = LinearProbe()
    signal.start(view)
    assert [r.state for r in signal.on_probe_evaluation(view)] == [ReadingStatus.INSUFFICIENT]
