"""Feature signals against numpy in float64, on activations caught by hooks of our own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from journeys import LAYER, Journey, unit
from riprap.signals import Drift, Energy, Overlap, Projection
from riprap.signals.features._directions import (
    energy_ratio,
    principal_directions,
    subspace_overlap,
)
from views import values


def test_projection() -> None:
    journey = Journey(Projection())
    directions = journey.directions(journey.then)
    for name, direction in directions.items():
        then, now = journey.then[name] @ direction, journey.now[name] @ direction
        assert values(journey.first, "projection")[name] == pytest.approx(then.mean(), rel=1e-4)
        assert values(journey.first, "projection_ratio")[name] == pytest.approx(1, rel=1e-6)
        assert values(journey.later, "projection")[name] == pytest.approx(now.mean(), rel=1e-4)
        ratio = now.mean() / then.mean()
        assert values(journey.later, "projection_ratio")[name] == pytest.approx(ratio, rel=1e-3)
    assert all(r.layer == LAYER for r in journey.later)
    lone = [r for r in journey.first if r.behavior == "lone"]
    assert [(r.signal, r.state, r.value) for r in lone] == [("projection", "NOT_RUN", None)]
    assert "Behavior(contrast=...)" in lone[0].detail


def test_energy() -> None:
    journey = Journey(Energy())
    first, later = (values(r, "energy_ratio") for r in (journey.first, journey.later))
    for name, then in journey.then.items():
        vectors = np.linalg.eigh(then.T @ then)[1][:, ::-1][:, : min(8, len(then))]
        now = journey.now[name]
        expected = ((now @ vectors) ** 2).sum() / (now**2).sum()
        assert first[name] == pytest.approx(1, rel=1e-5)  # no more probes than directions
        assert later[name] == pytest.approx(expected, rel=1e-3)
        assert 0 < later[name] < 0.999


def test_energy_keeps_only_the_top_directions() -> None:
    rows = torch.randn(40, 12)
    basis = principal_directions(rows, 3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3), atol=1e-5, rtol=0)
    squares = np.linalg.svd(rows.double().numpy(), compute_uv=False) ** 2
    expected = squares[:3].sum() / squares.sum()
    assert float(energy_ratio(rows, basis)) == pytest.approx(expected, rel=1e-5)


def test_drift() -> None:
    journey = Journey(Drift())
    turned = values(journey.later, "drift_direction")
    shifted = values(journey.later, "drift_mean")
    noise = values(journey.first, "drift_noise")
    for name, then in journey.then.items():
        before, after = then.mean(0), journey.now[name].mean(0)
        expected = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert shifted[name] == pytest.approx(expected, rel=1e-4)
    v0, vt = journey.directions(journey.then), journey.directions(journey.now)
    here, there = journey.then["refusal"], journey.then["over"]
    halves = [unit(here[i::2].mean(0) - there[i::2].mean(0)) for i in (0, 1)]
    for name in ("refusal", "over"):
        assert turned[name] == pytest.approx(1 - v0[name] @ vt[name], rel=1e-3, abs=1e-5)
        assert noise[name] == pytest.approx(1 - halves[0] @ halves[1], rel=1e-3, abs=1e-5)
    assert turned.keys() == noise.keys() == {"refusal", "over"}
    assert values(journey.later, "drift_noise") == {}


def test_nothing_has_drifted_at_the_start() -> None:
    journey = Journey(Drift())
    for signal in ("drift_mean", "drift_direction"):
        for value in values(journey.first, signal).values():
            assert value == pytest.approx(0, abs=1e-6)


def overlaps(readings: list) -> dict[str, float]:
    return {r.signal: r.value for r in readings}


def test_overlap() -> None:
    journey = Journey(Overlap())
    for readings, sets in ((journey.first, journey.then), (journey.later, journey.now)):
        bases = {name: np.linalg.svd(rows.T)[0][:, :3] for name, rows in sets.items()}
        for pair in ("refusal|over", "refusal|lone", "over|lone"):
            left, right = (bases[name] for name in pair.split("|"))
            cosines = np.linalg.svd(left.T @ right, compute_uv=False)
            found = overlaps(readings)[f"subspace_overlap:{pair}"]
            assert found == pytest.approx((cosines**2).mean(), rel=1e-3)
    assert overlaps(journey.first)["subspace_overlap_chance"] == pytest.approx(3 / 16)
    assert "subspace_overlap_chance" not in overlaps(journey.later)


@pytest.mark.parametrize(("k", "d"), [(2, 16), (4, 32), (8, 24)])
def test_random_subspaces_overlap_by_chance(k: int, d: int) -> None:
    found = [
        float(
            subspace_overlap(
                principal_directions(torch.randn(60, d), k),
                principal_directions(torch.randn(60, d), k),
            )
        )
        for _ in range(200)
    ]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - k / d) < 4 * error
    assert error < 0.1 * k / d


def test_a_subspace_overlaps_wholly_with_itself_and_not_with_its_complement() -> None:
    whole = torch.linalg.qr(torch.randn(10, 10))[0]
    turned = whole[:, :4] @ torch.linalg.qr(torch.randn(4, 4))[0]
    assert float(subspace_overlap(whole[:, :4], turned)) == pytest.approx(1, abs=1e-5)
    assert float(subspace_overlap(whole[:, :4], whole[:, 4:8])) == pytest.approx(0, abs=1e-5)
