"""The studies of verdicts and of spurious forgetting: judged as their plans say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.harness.preregistration import Preregistration
from experiments.loss_classification import damage, study
from experiments.loss_classification.checkpoints import CASES, renumbered, spare, tabulated
from experiments.loss_classification.plan import Plan
from experiments.loss_classification.simulate import STORED_NAMES, ClassifiedCheckpoint
from experiments.spurious_forgetting import study as spurious
from experiments.spurious_forgetting.plan import Plan as SpuriousPlan
from experiments.spurious_forgetting.simulate import Evaluation, Recovery, Run
from experiments.worlds import ToyWorld
from riprap.diagnosis import RecoveryEvidence, Verdict
from riprap.diagnosis.recovery import classify_loss

A, K, BOTH = map(str, (Verdict.ALIGNMENT, Verdict.KNOWLEDGE, Verdict.BOTH))


def found(truth: str, verdict: str, **numbers: float | None) -> ClassifiedCheckpoint:
    evidence: dict[str, Any] = {"score_now": 0.0} | numbers
    return ClassifiedCheckpoint("people", "x", 1, truth, 1.0, 1.0, verdict, evidence, {})


def test_the_frozen_preregistrations_hold() -> None:
    for name, plan in (("loss_classification", Plan), ("spurious_forgetting", SpuriousPlan)):
        preregistration = Preregistration.named(name)
        preregistration.verify()
        assert plan.of(preregistration).confirmatory
    study.check_thresholds(Plan.of(Preregistration.named("loss_classification")))
    assert set(Plan.of(Preregistration.named("loss_classification")).cases) == {
        case.label for case in CASES
    }


@pytest.mark.parametrize("run", ["loss_classification", "loss_classification-third"])
def test_the_verdicts_of_the_stored_runs_are_unchanged(run: str) -> None:
    """63 checkpoints of each run with all evidence, 57 of which its accuracy counts."""
    stored = json.loads(Path("results", run, "confirmatory.json").read_text())
    assert len(stored) == 63
    names = {name: STORED_NAMES.get(name, name) for name in RecoveryEvidence.__dataclass_fields__}
    for one in stored:
        numbers = {name: one["evidence"].get(key) for name, key in names.items()}
        numbers = {name: value for name, value in numbers.items() if value is not None}
        evidence = RecoveryEvidence(**{"known_paraphrased": math.nan} | numbers)
        assert classify_loss(evidence)[0] == one["verdict"], one["case"]


def test_the_damage_is_as_said() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    assert int((damage.prune(weight, 9) == 0).sum()) == round(0.2 * weight.numel())
    assert len(damage.rounded(weight, 4).reshape(-1, damage.GROUP)[0].unique()) <= 16
    small, large = (damage.noise(1)(weight, level) - weight for level in (0, 5))
    assert torch.allclose(large, small * damage.NOISE_GROWTH**5, atol=1e-5)
    facts = damage.LightFacts()
    rows = {tuple(row) for row in facts.examples.token_rows() or []}
    assert not rows & {tuple(row) for row in facts.probes.token_rows() or []}
    wrong = facts.overwritten()
    assert bool((wrong.targets != facts.world.tasks["facts"].targets).all())


def test_insufficient_evidence_is_counted_apart() -> None:
    every = [found(A, A), found(A, K), found(K, K), found(BOTH, "insufficient evidence")]
    right, given, low, high = study.accuracy(every)
    assert (right, given) == (2, 3)
    assert low < 2 / 3 < high
    assert study.confusion(every)[BOTH]["insufficient evidence"] == 1


def test_a_single_number_gets_its_best_rule() -> None:
    every = [found(A, A, n=0.9), found(A, A, n=0.8), found(K, K, n=0.5), found(BOTH, BOTH, n=0.1)]
    rule = study.fitted(every, "n")
    assert study.right_by(rule, every, "n") == (4, 4)
    other = [found(A, A, n=0.4), found(K, K, n=0.55), found(K, K, n=None)]
    assert study.right_by(rule, other, "n") == (1, 2)
    assert study.fitted([found(A, A, n=None)], "n") is None


def test_the_sums_tell_no_probe() -> None:
    world = ToyWorld()
    sums = world.tasks["A"]
    rows = {tuple(row) for row in spare(world, sums).input_ids.tolist()}
    assert not rows & {tuple(row) for row in world.behaviors()[0].probes.rows()}
    assert not rows & {tuple(row) for row in world.truth()["A"].input_ids.tolist()}
    assert bool((tabulated(sums, 1.0, 23).targets != sums.targets).all())
    assert int((tabulated(sums, 0.5, 23).targets != sums.targets).sum()) == round(0.5 * len(sums))
    assert torch.equal(renumbered(world, sums).targets, sums.targets + 23)


@pytest.fixture
def plan() -> SpuriousPlan:
    return SpuriousPlan.of(Preregistration.named("spurious_forgetting"))


def runs(plan: SpuriousPlan, asked: float, few: float, low_end: float) -> list[Run]:
    def along(end: float) -> list[Evaluation]:
        found = [Evaluation(step, asked if step else 1.0, 0.95, 0.3) for step in plan.at[:-1]]
        return [*found, Evaluation(plan.at[-1], end, 0.7, 1.0)]

    curve = {"own 10": few, "irrelevant 10": asked, "reference 10": 1.0}
    back = Recovery(plan.early, K, asked, curve, asked, 0.9, {"low": 0.9, "high": asked})
    return [
        Run("same format", "nothing", 1, along(0.3), [back]),
        Run("same format", "low", 1, along(low_end), []),
        Run("same format", "high", 1, along(0.3), []),
    ]


def test_each_finding_is_judged_by_its_own_number(plan: SpuriousPlan) -> None:
    good = runs(plan, asked=0.4, few=0.9, low_end=0.6)
    said = {claim: spurious.verdict(claim, "same format", good, plan) for claim in spurious.CLAIMS}
    assert said.pop("irrelevant") == "does not replicate"
    assert set(said.values()) == {"replicates"}
    bad = runs(plan, asked=0.9, few=0.91, low_end=0.35)
    said = {claim: spurious.verdict(claim, "same format", bad, plan) for claim in spurious.CLAIMS}
    assert said["collapse"] == said["few"] == said["freezing"] == "does not replicate"
