"""The guards on the real model: what its table and verdicts say of runs that are known."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments.guards_smollm2 import tables as pages
from experiments.guards_smollm2.methods import BENCH
from experiments.guards_smollm2.plan import Plan
from experiments.guards_smollm2.simulate import Run
from experiments.harness.preregistration import Preregistration, PreregistrationError

STEPS = Plan.of(Preregistration.named("guards_smollm2")).steps


@pytest.fixture
def plan() -> Plan:
    return Plan.of(Preregistration.named("guards_smollm2"))


def run(guard: str, end: float, task: float, seed: int = 1, steps: int = STEPS) -> Run:
    margins = {"refusal": {0: 4.0, steps: end}, "over_refusal": {0: 3.0, steps: 3.5}}
    scores = {name: {0: 1.0, steps: float(own[steps] > 0)} for name, own in margins.items()}
    return Run(guard, seed, margins, scores, task, 3.0, 100.0, 0.5, ["3 refusal watch"])


def test_every_guard_that_the_protocol_names_is_on_the_bench(plan: Plan) -> None:
    assert {*plan.tried, *plan.guards} <= set(BENCH)
    assert pages.KEEPER in plan.guards


def test_a_loss_is_a_share_of_the_unguarded_one() -> None:
    plain = run("plain", -6.0, 1.2)  # lost 10
    assert pages.lost(run("keeper", 2.5, 1.2), plain, "refusal") == pytest.approx(0.15)
    assert pages.lost(run("keeper", 5.0, 1.2), plain, "refusal") == pytest.approx(-0.1)
    assert pages.worse(run("keeper", 0.0, 1.26), plain) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("end", "task", "passed"), [(2.5, 1.2, True), (1.9, 1.2, False), (2.5, 1.25, False)]
)
def test_the_keeper_must_both_keep_and_learn(
    end: float, task: float, passed: bool, plan: Plan
) -> None:
    found = [run("plain", -6.0, 1.2), run("keeper", end, task)]
    verdict = pages.verdicts(found, plan)["1"]
    assert verdict["passed"] is passed
    page = pages.page(found, plan, Preregistration.named("guards_smollm2"), "confirmatory")
    assert ("**missed**" in page) is not passed


def test_the_table_has_a_row_a_guard_with_spread_over_seeds(plan: Plan) -> None:
    found = [run("plain", -6.0, 1.2), run("plain", -6.0, 1.2, seed=2)]
    found += [run("keeper", 2.5, 1.2), run("keeper", 3.5, 1.2, seed=2)]
    page = pages.page(found, plan, Preregistration.named("guards_smollm2"), "confirmatory")
    row = next(line for line in page.splitlines() if line.startswith("| keeper"))
    assert "3.00 [2.50, 3.50]" in row and "0.10 [0.05, 0.15]" in row
    assert pages.figure(found, plan).to_dict()["hconcat"]


def test_runs_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    written = run("keeper", 2.5, 1.2)
    file = tmp_path / "run.json"
    file.write_text(json.dumps(asdict(written)))
    assert Run.load(file) == written


def test_seeds_that_meet_are_refused(plan: Plan) -> None:
    preregistration = Preregistration.named("guards_smollm2")
    study = preregistration.study | {"confirmatory": [1000]}
    with pytest.raises(PreregistrationError, match=r"\[1000\] are both"):
        Plan.of(preregistration.model_copy(update={"study": study}))
