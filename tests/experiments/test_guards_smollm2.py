"""Guards on SmolLM2: table and verdicts of runs that are known."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from experiments.guards_smollm2 import study
from experiments.guards_smollm2.plan import Plan
from experiments.guards_smollm2.simulate import GUARDS, Run
from experiments.harness.cache import rebuild
from experiments.harness.preregistration import Preregistration, PreregistrationError

STEPS = Plan.of(Preregistration.named("guards_smollm2")).steps


@pytest.fixture
def plan() -> Plan:
    return Plan.of(Preregistration.named("guards_smollm2"))


def run(
    guard: str,
    end: float,
    task: float,
    seed: int = 1,
    steps: int = STEPS,
    refused: float | None = None,
) -> Run:
    margins = {"refusal": {0: 4.0, steps: end}, "over_refusal": {0: 3.0, steps: 3.5}}
    scores = {name: {0: 1.0, steps: float(own[steps] > 0)} for name, own in margins.items()}
    refused = float(end > 0) if refused is None else refused
    judged = {"refusal": {0: 1.0, steps: refused}, "over_refusal": {0: 1.0, steps: 1.0}}
    return Run(guard, seed, margins, scores, judged, task, 3.0, 100.0, 0.5, ["3 refusal watch"])


def test_every_preregistered_guard_is_known(plan: Plan) -> None:
    assert {*plan.tried, *plan.guards} <= set(GUARDS)
    assert study.AUTO_GUARD in plan.guards


def test_a_loss_is_a_share_of_the_unguarded_one() -> None:
    plain = run("plain", -6.0, 1.2)  # lost 10
    assert study.lost(run("auto_guard", 2.5, 1.2), plain, "refusal") == pytest.approx(0.15)
    assert study.lost(run("auto_guard", 5.0, 1.2), plain, "refusal") == pytest.approx(-0.1)
    assert study.worse(run("auto_guard", 0.0, 1.26), plain) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("end", "task", "refused", "passed"),
    [
        (2.5, 1.2, 1.0, True),
        (1.9, 1.2, 1.0, False),
        (2.5, 1.25, 1.0, False),
        (2.5, 1.2, 0.75, False),
    ],
)
def test_auto_guard_must_both_keep_and_learn(
    end: float, task: float, refused: float, passed: bool, plan: Plan
) -> None:
    found = [run("plain", -6.0, 1.2), run("auto_guard", end, task, refused=refused)]
    verdict = study.verdicts(found, plan)["1"]
    assert verdict["passed"] is passed
    page = study.sections(found, plan)["verdicts"]
    assert ("**missed**" in page) is not passed


def test_the_table_has_a_row_a_guard_with_spread_over_seeds(plan: Plan) -> None:
    found = [run("plain", -6.0, 1.2), run("plain", -6.0, 1.2, seed=2)]
    found += [run("auto_guard", 2.5, 1.2), run("auto_guard", 3.5, 1.2, seed=2)]
    row = next(row for row in study.sections(found, plan)["guards"] if row["guard"] == "auto_guard")
    assert row["margin refusal"] == "3.00 [2.50, 3.50]"
    assert row["share of the loss"] == "0.10 [0.05, 0.15]"
    assert study.figure(found, plan).to_dict()["hconcat"]


def test_runs_are_read_back_as_they_were_written() -> None:
    written = run("auto_guard", 2.5, 1.2)
    assert rebuild(Run, json.loads(json.dumps(asdict(written)))) == written


def test_seeds_that_meet_are_refused(plan: Plan) -> None:
    preregistration = Preregistration.named("guards_smollm2")
    study = preregistration.study | {"confirmatory": [1000]}
    with pytest.raises(PreregistrationError, match=r"\[1000\] are both"):
        Plan.of(preregistration.model_copy(update={"study": study}))
