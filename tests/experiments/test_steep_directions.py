"""Steep directions: unrelated margins, ratios and conclusions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.steep_directions.plan import Plan
from experiments.steep_directions.simulate import COLUMNS, UNRELATED, simulate, unrelated
from experiments.steep_directions.study import Run, behavior_runs, claims, interval
from experiments.worlds import ToyWorld

TERMS = Preregistration.named("steep_directions")
PLAN = Plan.of(TERMS)
CHANCE = 1e-4


def made(condition: str, seed: int, steep: float, unrelated: float, cosine: float = 0.0) -> Run:
    noise = np.exp(np.random.default_rng(seed).normal(0, 0.1, (10, len(COLUMNS))))
    rows = np.array([steep, *[unrelated] * 3, CHANCE, 1.0, 1.0]) * noise
    rows[:, -2:] = cosine
    near = np.abs(rows[:, -2:]).max(1) < PLAN.near_zero
    return Run(condition, seed, "B", rows, near)


def runs(steep: float, unrelated: float, cosine: float = 0.0) -> list[Run]:
    return [
        made(condition, seed, steep, unrelated, cosine)
        for condition in PLAN.conditions
        for seed in range(5)
    ]


def said(found: list[Run]) -> list[str]:
    return list(claims(found, PLAN, CHANCE).values())


def test_the_preregistration_is_frozen_and_its_seeds_are_apart() -> None:
    TERMS.verify()
    assert not set(PLAN.confirmatory) & set(PLAN.exploratory)
    document = TERMS.model_dump() | {"hash": None}
    document["study"]["exploratory"] = [0]
    with pytest.raises(PreregistrationError, match="both exploratory and confirmatory"):
        Plan.of(Preregistration.model_validate(document))


def test_verdicts() -> None:
    assert said(runs(1e-2, 1e-3)) == ["supported", "supported"]
    assert said(runs(1e-2, 1e-2)) == ["supported", "not supported"]
    assert said(runs(1e-4, 1e-4)) == ["not supported", "not supported"]
    mixed = [one for one in runs(1e-2, 1e-3) if one.condition != "C"]
    mixed += [made("C", seed, 1e-4, 1e-3) for seed in range(5)]
    assert said(mixed) == ["supported in C_disjoint, C_context alone"] * 2


def test_measurements_far_from_0_do_not_count() -> None:
    assert said(runs(1e-2, 1e-3, cosine=0.2)) == ["not supported", "not supported"]


def test_a_ratio_is_a_geometric_mean_with_an_interval_over_seeds() -> None:
    found = runs(1e-2, 1e-3)
    own = [one for one in found if one.condition == "C"]
    logs = [np.log(one.rows[:, 0] / one.rows[:, COLUMNS.index("pairs")]).mean() for one in own]
    value, low, high = interval(own, "pairs")
    half = 2.776445 * np.std(logs, ddof=1) / 5**0.5
    assert value == pytest.approx(np.exp(np.mean(logs)))
    assert (low, high) == pytest.approx(tuple(np.exp(np.mean(logs) + half * np.array([-1, 1]))))


@pytest.mark.parametrize("kind", UNRELATED)
def test_unrelated_margins_are_drawn_anew(kind: str) -> None:
    world = ToyWorld()
    model, behavior = world.untrained(0), world.behaviors()[0]
    generator = torch.Generator().manual_seed(1)
    first, second = (unrelated(kind, behavior, generator) for _ in range(2))
    margins = [one.margins(model, one.probes) for one in (behavior, first, second)]
    assert all(m.shape == (48,) for m in margins)
    assert not torch.allclose(margins[1], margins[2])
    assert not torch.allclose(margins[0], margins[1])


@pytest.mark.slow
def test_a_run_of_a_smaller_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    study = PLAN.model_dump(mode="json") | {"steps": 4, "every": 2, "k": 2, "most": 3, "draws": 1}
    small = TERMS.model_copy(update={"study": study})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ToyWorld, "start", lambda self, seed: self.untrained(seed))
    kept = torch.get_num_threads()
    arrays = simulate("C", 7, small)
    torch.set_num_threads(kept)
    found = behavior_runs("C", 7, arrays, Plan.of(small))
    assert [one.behavior for one in found] == ["A", "B", "over_refusal"]
    for one in found:
        assert one.rows.shape == (2, len(COLUMNS))
        assert np.isfinite(one.rows).all()
        aligned = one.rows[:, : len(COLUMNS) - 2]
        assert ((aligned > 0) & (aligned < 1)).all()
        assert (np.abs(one.rows[:, -2:]) <= 1).all()
    with pytest.raises(PreregistrationError, match="made for world x"):
        simulate("C", 8, small.model_copy(update={"study": study | {"world": "x"}}))
