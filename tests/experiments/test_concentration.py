"""Concentration: the rule on results that are known, probes and page."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from experiments.concentration import analysis, simulate, study
from experiments.concentration.analysis import LESS, MORE, ROLES, UNTOLD
from experiments.concentration.plan import Plan
from experiments.concentration.simulate import BehaviorMeasures, behavior_of, common_prefix
from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.worlds.facts import FactsWorld
from riprap.behaviors import probe_sets
from riprap.diagnosis import Estimate

TERMS = Preregistration.named("concentration")
PLAN = Plan.of(TERMS)
N = PLAN.probes


def made(
    role: str, rank: float, bend: float, needed: int, seed: int = 700, model: str = "toy"
) -> BehaviorMeasures:
    """A behavior of which all measures are known; a little noise tells the seeds apart."""
    wobble = 1 + 0.01 * (seed % 3 - 1)
    steep = np.where(np.array(PLAN.counts)[:, None] < needed, 1.0, -1.0) * np.ones((1, N))
    other = np.ones((2, len(PLAN.counts), N))
    left: dict[str, Any] = {"steep": steep[None], "random": other, "unrelated": other}
    return BehaviorMeasures(
        model,
        seed,
        role,
        role,
        Estimate(rank * wobble, rank - 0.05, rank + 0.05, N),
        Estimate(0.9, 0.85, 0.95, N),
        {"embed": 0.1, "layers.0": 0.5, "layers.1": 0.3, "head": 0.1},
        [0.5, 0.3, 0.2],
        [[bend * wobble, 0.1], [bend, 0.1], [bend / wobble, 0.1]],
        [1.0, 1.0, 1.0],
        [0.01, 0.01, 0.01],
        list(PLAN.counts),
        0.9,
        [1.0] * N,
        {kind: values.tolist() for kind, values in left.items()},
        {kind: np.zeros((len(v), len(v[0]), 0)).tolist() for kind, v in left.items()},
        60.0,
    )


def model_of(refusal: tuple[float, float, int], seeds: tuple[int, ...], name: str = "toy") -> Any:
    others = {"over_refusal": (0.2, 0.3, 2), "skill": (0.7, 0.1, 8), "facts": (0.6, 0.1, 8)}
    by_role = {"refusal": refusal, **others}
    return [made(role, *values, seed, name) for seed in seeds for role, values in by_role.items()]


@pytest.mark.parametrize(("name", "seeds"), [("toy", (700, 701, 702)), ("SmolLM2", (0,))])
@pytest.mark.parametrize(
    ("refusal", "than_others", "than_over"),
    [
        ((0.2, 0.3, 2), "more concentrated", "not told apart"),
        ((0.05, 0.6, 1), "more concentrated", "more concentrated"),
        ((0.2, 0.3, 32), "mixed", "mixed"),
        ((0.9, 0.02, 32), "less concentrated", "less concentrated"),
        ((0.65, 0.1, 8), "not told apart", "less concentrated"),
    ],
)
def test_verdicts(
    name: str,
    seeds: tuple[int, ...],
    refusal: tuple[float, float, int],
    than_others: str,
    than_over: str,
) -> None:
    found = study.verdicts(model_of(refusal, seeds, name), PLAN)[name]
    assert list(found.values()) == [than_others, than_over]


def test_one_measure_alone_is_no_verdict() -> None:
    assert analysis.verdict({"a": MORE, "b": UNTOLD, "c": UNTOLD}, PLAN) == "mixed"
    assert analysis.verdict({"a": MORE, "b": MORE, "c": LESS}, PLAN) == "mixed"


def test_a_difference_that_noise_explains_is_not_told_apart() -> None:
    rank = analysis.MEASURES[0]
    wide = [replace(made("refusal", r, 0.3, 2, s), rank=Estimate(r, 0, 1, N)) for s, r in
            ((700, 0.1), (701, 0.9), (702, 0.2))]  # fmt: skip
    other = [made("skill", 0.7, 0.1, 8, seed) for seed in (700, 701, 702)]
    assert analysis.compare(rank, wide, other) == UNTOLD
    assert analysis.compare(rank, wide[:1], other[:1]) == UNTOLD


def test_the_difference_of_two_normal_estimates() -> None:
    found = analysis.difference(Estimate(5.0, 2.0, 8.0, 9), Estimate(1.0, -3.0, 5.0, 9))
    assert (found.mean, found.low, found.high) == pytest.approx((4.0, -1.0, 9.0))
    lopsided = analysis.difference(Estimate(5.0, 4.0, 8.0, 9), Estimate(1.0, 1.0, 1.0, 9))
    assert (lopsided.low, lopsided.high) == pytest.approx((3.0, 7.0))


def test_more_than_all_directions_counts_as_twice_the_most() -> None:
    one = made("refusal", 0.2, 0.3, 99)
    assert analysis.directions(one) == 2 * max(PLAN.counts)
    assert analysis.estimate_of(analysis.MEASURES[2], [one]).high == 2 * max(PLAN.counts)


def test_the_preregistration_is_frozen_and_fits_the_world() -> None:
    TERMS.verify()
    assert FactsWorld().fingerprint == PLAN.world
    assert set(PLAN.toy) == set(PLAN.real) == set(ROLES)
    study = TERMS.study | {"confirmatory": [1000]}
    with pytest.raises(PreregistrationError, match=r"\[1000\] are both"):
        Plan.of(TERMS.model_copy(update={"study": study}))


def test_page_and_figure_show_what_was_found() -> None:
    found = model_of((0.2, 0.3, 32), (700, 701, 702)) + model_of((0.2, 0.3, 2), (0,), "SmolLM2")
    page = study.sections(found, PLAN)
    assert "- toy: refusal than skill and facts: **mixed**" in page["verdicts"]
    assert "- SmolLM2: refusal than skill and facts: **more concentrated**" in page["verdicts"]
    models = page["models"]
    row = next(line for line in models.splitlines() if line.startswith("| refusal | refusal |"))
    assert "0.200 [0.195, 0.205]" in row and "32.0 [32.0, 32.0]" in row
    assert "| directions to ablate | less | less | less |" in models
    assert "| directions to ablate | not told apart | more | more |" in models
    assert len(study.figure(found).to_dict()["vconcat"]) == 2


def test_a_behavior_is_measured_once_and_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    world = FactsWorld()
    monkeypatch.setattr(FactsWorld, "start", lambda self, seed: world.untrained(seed))
    update = {"probes": 4, "groups": 2, "top": 1, "counts": (1, 2), "draws": 1}
    plan = PLAN.model_copy(update=update)
    four = range(plan.probes)
    monkeypatch.setattr(simulate, "_enough", lambda behavior, passed, plan: behavior.subset(four))
    found = simulate.simulate("toy", 5, "refusal", plan)
    assert found.behavior == "B"
    assert np.shape(found.left["steep"]) == np.shape(found.beside["steep"]) == (1, 2, 4)
    assert len(found.traces) == 2
    monkeypatch.setattr(FactsWorld, "start", None)
    assert simulate.simulate("toy", 5, "refusal", plan) == found
    assert json.loads(json.dumps(asdict(found)))["seed"] == 5
    with pytest.raises(TypeError):  # other terms are another measurement
        simulate.simulate("toy", 5, "refusal", plan.model_copy(update={"draws": 2}))


def test_another_world_or_too_few_probes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PreregistrationError, match="made for world no"):
        simulate.simulate("toy", 5, "skill", PLAN.model_copy(update={"world": "no"}))
    behavior = FactsWorld().behaviors()[0]
    with pytest.raises(PreregistrationError, match="passes 3 probes"):
        simulate._enough(behavior, [0, 1, 2], PLAN)


def test_a_question_is_decided_where_its_options_part(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"prompt": "how", "options": ["two plus red", "two plus blue", "six"], "answer": 0},
        {"prompt": "what", "options": ["yes", "yes no"], "answer": 0},  # never parts
        {"prompt": "what is", "options": ["no", "yes"], "answer": 1},
    ]
    monkeypatch.setattr(probe_sets, "rows", lambda name: rows)
    found = behavior_of("arithmetic", tokenizer)
    said = [tokenizer.decode(row) for row in found.probes.rows()]
    assert [text.split("<assistant>")[1].split() for text in said] == [["two", "plus"], []]
    assert [tokenizer.decode([t]) for t in found.margins.targets.tolist()] == ["red", "yes"]
    assert common_prefix([1, 2, 3], [1, 2]) == 2
