"""Rerouted erosion: transplants, anchored directions, and conclusions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.erosion_rerouting import analysis, study
from experiments.erosion_rerouting import simulate as module
from experiments.erosion_rerouting.analysis import (
    CLAIMS,
    Runs,
    came_around,
    main_route,
    restored,
    strayed,
)
from experiments.erosion_rerouting.plan import Plan
from experiments.erosion_rerouting.simulate import ROUTES, Measurement, Run, simulate, transplants
from experiments.erosion_rerouting.tasks import LAYERS, Setting, guard_of, held_directions
from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.worlds import ToyWorld
from riprap.evaluation import evaluate

TERMS = Preregistration.named("erosion_rerouting")
PLAN = Plan.of(TERMS)
NAMES = ("A", "B", "over_refusal")
PARTS = ("0 held", "0 rest", "1 held", "1 rest")
pytestmark = pytest.mark.filterwarnings("ignore:behavior 'old' scores")


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Starts that know nothing, so that nothing needs to be trained; the folder of the runs."""
    monkeypatch.setattr(ToyWorld, "start", lambda self, seed: self.untrained(seed))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def smaller(**changes: Any) -> Preregistration:
    study = PLAN.model_dump(mode="json") | {"steps": 6, "window": 3, "at": [6], "every": 1}
    return TERMS.model_copy(update={"study": study | changes, "hash": None})


def test_the_preregistration_is_frozen_and_its_seeds_are_apart() -> None:
    TERMS.verify()
    assert not set(PLAN.confirmatory) & set(PLAN.exploratory)
    assert len(PLAN.jobs(False)) == len(set(PLAN.jobs(False))) == 5 * (9 + 2)
    assert {seed for _, _, seed in PLAN.jobs(True)} == set(PLAN.exploratory)


# Transplants.


def bases() -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(0)
    return {
        layer: torch.linalg.qr(torch.randn(64, 5, generator=made))[0].T.contiguous()
        for layer in LAYERS
    }


def changed(name: str, within: Tensor | None = None) -> nn.Module:
    """The untrained model with one weight moved, whose outputs move along `within` alone."""
    model = ToyWorld().untrained(0)
    weight = dict(model.named_parameters())[name]
    noise = 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        weight += noise if within is None else within.T @ within @ noise
    return model


def put_back(model: nn.Module) -> tuple[dict[str, float], float, float]:
    """Margins by route, the model's own and the start's."""
    behavior, start = ToyWorld().behaviors()[0], ToyWorld().untrained(0)
    found = transplants(behavior, model, start, bases())
    own, first = (float(evaluate(behavior, one).margins.mean()) for one in (model, start))
    assert tuple(sorted(found)) == tuple(sorted(ROUTES))
    return found, own, first


def test_what_was_moved_is_what_restores() -> None:
    found, own, first = put_back(changed("lm_head.weight"))
    assert abs(own - first) > 1e-2
    assert found["readout"] == pytest.approx(first, abs=1e-5)
    assert all(found[route] == pytest.approx(own, abs=1e-5) for route in ROUTES[:-1])
    inside = bases()[LAYERS[1]]
    found, own, first = put_back(changed(f"{LAYERS[1]}.mlp.down_proj.weight", inside))
    assert abs(own - first) > 1e-2
    assert found["1 held"] == pytest.approx(first, abs=1e-5)
    for route in ("0 held", "0 rest", "0 elsewhere", "1 rest", "readout"):
        assert found[route] == pytest.approx(own, abs=1e-5)


def test_other_positions_are_a_route_of_their_own() -> None:
    found, own, first = put_back(changed(f"{LAYERS[0]}.mlp.down_proj.weight"))
    assert found["readout"] == pytest.approx(own, abs=1e-5)
    routes = [found[route] for route in ("0 held", "0 rest", "0 elsewhere")]
    assert all(abs(margin - own) > 1e-4 for margin in routes)
    # The first position sees no other: what it tells layer 1 is all that "elsewhere" leaves out.
    assert all(abs(margin - first) > 1e-4 for margin in routes)


def test_transplants_leave_no_trace() -> None:
    model = changed("lm_head.weight").train()
    before = {name: part.clone() for name, part in model.state_dict().items()}
    put_back(model)
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


# Guards.


@pytest.mark.slow
def test_what_each_condition_holds(untrained: Path) -> None:
    strong = smaller(strengths=PLAN.strengths | {"all": 5.0})
    runs = {name: simulate(name, "C", 7, strong) for name in ("plain", "all", "one", "random")}
    runs["reselect"] = simulate("reselect", "C", 7, smaller(reselect=2, at=[3, 6]))
    features = {name: [mark.features for mark in run.marks] for name, run in runs.items()}
    assert features["plain"] == [0]
    assert features["all"] == features["random"] == [40]
    assert features["one"] == [20]
    assert 40 < features["reselect"][0] < features["reselect"][1] <= 128
    moved = {name: run.marks[-1].moved for name, run in runs.items()}
    for part in ("0 held", "1 held"):
        assert moved["all"][part] < 0.8 * moved["plain"][part]
    assert moved["one"]["0 held"] > moved["all"]["0 held"]
    assert runs["all"].marks[-1].margins != runs["random"].marks[-1].margins


def test_the_closed_readout_does_not_move(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[nn.Module] = []
    read = module.Meter.measure

    def keep(self: Any, step: int, model: nn.Module, guard: Any) -> Measurement:
        kept.append(model)
        return read(self, step, model, guard)

    monkeypatch.setattr(module.Meter, "measure", keep)
    first = ToyWorld().untrained(7)
    for condition, still in (("closed", True), ("all", False)):
        simulate(condition, "C", 7, smaller())
        model: Any = kept[-1]
        assert torch.equal(model.lm_head.weight, first.lm_head.weight) is still
        assert torch.equal(model.model.norm.weight, first.model.norm.weight) is still
        trained, then = (m.model.layers[0].mlp.down_proj.weight for m in (model, first))
        assert not torch.equal(trained, then)


def test_random_directions_are_others_and_fixed_by_the_seed(untrained: Path) -> None:
    plan = Plan.of(smaller())
    grounds = [Setting("C", seed, plan) for seed in (7, 7, 8)]
    held = []
    for ground in grounds:
        guard = guard_of("random", ground)
        assert guard is not None
        leaf: Any = list(guard.flatten())[1]
        held.append(leaf.sae.W_dec)
    assert torch.equal(held[0], held[1])
    assert not torch.allclose(held[0], held[2])
    drifted = held_directions(None, grounds[0])[LAYERS[1]]
    assert drifted.shape == held[0].shape == (20, 64)
    assert torch.allclose(drifted @ drifted.T, torch.eye(20), atol=1e-5)
    assert (held[0] @ drifted.T).square().sum() < 12  # of 20; by chance 6


def test_a_run_is_made_once_and_for_its_world(untrained: Path) -> None:
    preregistration = smaller()
    first = simulate("one", "C", 7, preregistration)
    file = next(untrained.rglob("one-C-7.json"))
    written = file.stat().st_mtime_ns
    assert simulate("one", "C", 7, preregistration) == first
    assert file.stat().st_mtime_ns == written
    with pytest.raises(PreregistrationError, match="made for world x"):
        simulate("one", "C", 7, smaller(world="x"))


# Verdicts.


def mark(step: int, least: float, margin: float, **changes: Any) -> Measurement:
    behaved = {"A": 1.0, "B": least, "over_refusal": 1.0}
    made = Measurement(
        step=step,
        learned=1.0,
        scores=behaved,
        margins={"A": 1.0, "B": margin, "over_refusal": 1.0},
        unseen_scores=behaved,
        unseen_margins=dict.fromkeys(NAMES, 1.0),
        moved=dict.fromkeys(PARTS, 0.5),
        unseen_moved=dict.fromkeys(PARTS, 0.5),
        transplanted={
            name: {route: margin + (route == "readout") for route in ROUTES} for name in NAMES
        },
        features=40,
    )
    return replace(made, **changes)


def run_of(condition: str, seed: int, early: float, end: float, **changes: Any) -> Run:
    """A score that is 1 at the window and `end` at the end, and an early margin."""
    marks = (mark(400, 1.0, early), mark(1600, end, end - 0.9, **changes))
    return Run(condition, "C_context", seed, marks)


STILL = {"moved": {part: 0.01 if "held" in part else 0.2 for part in PARTS}}


def runs_of(changes: dict[str, Any] | None = None, **ends: float) -> Runs:
    """Five seeds of each condition; those not named in `ends` keep everything."""
    return {
        (name, task, seed): run_of(
            name,
            seed,
            -0.5 if name == "plain" else 0.8,
            ends.get(name, 0.0 if name == "plain" else 1.0),
            **({} if name == "plain" else STILL | (changes or {})),
        )
        for task, conditions in PLAN.conditions.items()
        for name in conditions
        for seed in range(5)
    }


def said(runs: Runs) -> dict[str, str]:
    found = analysis.conclude(runs, PLAN)
    return {one.claim: one.conclusion for one in found if one.task == "C_context"}


def test_claims_that_hold_and_that_do_not() -> None:
    yes, no = "supported", "not supported"
    found = said(runs_of(all=0.2, reselect=0.3))
    assert set(found) == set(CLAIMS)
    assert found["holds early"] == found["comes round"] == yes
    assert found["comes round by the readout"] == yes
    assert found["re-selection stops it"] == no
    assert found["closing the readout stops it"] == yes
    assert found["comes round on inputs that are not held"] == no
    assert found["random features do as well"] == yes
    kept = said(runs_of())
    assert kept["comes round"] == kept["comes round by the readout"] == no
    assert kept["re-selection stops it"] == yes
    unlearned = said(runs_of({"learned": 0.5}))
    assert unlearned["re-selection stops it"] == unlearned["closing the readout stops it"] == no
    others = said(runs_of({"unseen_scores": {"A": 0.3, "B": 1.0, "over_refusal": 1.0}}))
    assert others["comes round on inputs that are not held"] == yes


def test_features_that_strayed_did_not_make_way_for_a_detour() -> None:
    run, plain = run_of("all", 0, 0.8, 0.2), run_of("plain", 0, -0.5, 0.0)
    assert strayed(run, plain, 1600) == 1
    assert came_around(run, plain, PLAN) is None
    still = run_of("all", 0, 0.8, 0.2, **STILL)
    assert strayed(still, plain, 1600) == pytest.approx(0.02)
    found = came_around(still, plain, PLAN)
    assert found is not None
    assert found.step == 1600
    # Held at the last layer alone, the first may stray.
    half = {"moved": {"0 held": 0.5, "0 rest": 0.5, "1 held": 0.01, "1 rest": 0.2}}
    assert strayed(run_of("one", 0, 0.8, 0.2, **half), plain, 1600) == pytest.approx(0.02)


def test_four_of_five_seeds_are_needed() -> None:
    runs = dict(runs_of(all=0.2))
    for seed, expected in ((0, "supported"), (1, "not supported")):
        runs["all", "C_context", seed] = run_of("all", seed, 0.8, 1.0, **STILL)
        assert said(runs)["comes round"] == expected


def test_the_way_is_that_of_the_worst_behavior() -> None:
    own = mark(1600, 0.2, 0.5)
    assert restored(own, "B") == {route: 2.0 if route == "readout" else 0.0 for route in ROUTES}
    assert restored(own, "A") == {}  # it lost nothing
    assert main_route(own) == "readout"


def test_the_page_and_the_figure_have_every_condition() -> None:
    runs = runs_of(all=0.2)
    page = study.sections(runs, PLAN)
    claim = next(one for one in page["claims"] if one["claim"] == "comes round")
    assert list(claim.values())[1:] == ["C_context", "5 of 5 seeds", "**supported**"]
    assert (
        "| all | 5 of 5 (100%) | 1600, 1600, 1600, 1600, 1600 | 0.020 [0.020, 0.020] |"
        in (page["tasks"])
    )
    assert page["tasks"].count("| closed |") >= 4
    document = str(study.detour_figure(runs, "C_context", PLAN.conditions["C_context"]).to_dict())
    assert all(f'"condition":"{name}"' in document for name in PLAN.conditions["C_context"])
