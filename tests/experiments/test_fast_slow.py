"""The experiment on fast and slow training: its terms, conclusions, and pages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.fast_slow import analysis, training
from experiments.fast_slow.measure import Look
from experiments.fast_slow.plan import Plan
from experiments.fast_slow.premise import PREMISE, Premise, instructions, measure_premise
from experiments.fast_slow.premise import claims as premise_claims
from experiments.fast_slow.simulate import Run, Stage, simulate
from experiments.fast_slow.study import STUDY
from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.harness.study import Session
from experiments.worlds.verifiable import PARTS, VerifiableWorld

TERMS = Preregistration.named("fast_slow")
PLAN = Plan.of(TERMS)
NAMES = ("times", "rules", "facts", "refusal", "compliance")


def look(task: str, update: int, reward: float, kl: float, old: float) -> Look:
    rewards = dict.fromkeys(PARTS, reward)
    scores = dict.fromkeys(NAMES, old)
    return Look(
        task, update, 128 * update, rewards, rewards, reward, reward / 2, kl, kl, kl, 0.5, scores,
        dict.fromkeys(NAMES, 1.0),
    )  # fmt: skip


def made(arm: str, seed: int, pace: float, kl: float, damage: float, lost: int = 0) -> Run:
    """A run whose reward rises by `pace` an update, at a KL of `kl` for each unit of it."""
    noise = 1 + 0.01 * (seed % 7)
    tasks = ("proxy",) if arm.endswith("proxy") else ("first", "second")
    looks = []
    for task in tasks:
        for update in range(0, 130, 10):
            reward = min(0.9, pace * update * noise)
            looks.append(look(task, update, reward, kl * reward * noise, 1 - damage * reward))
    verdicts = dict.fromkeys(NAMES[:lost], "alignment loss")
    stages = [
        Stage(t, ["dash in marks"], 120, 15360, [(20, "times", "watch")], {"times": 40}, verdicts)
        for t in tasks
    ]
    return Run(arm, seed, looks, stages, 10.0)


def all_runs(**changed: tuple[float, float, float, int]) -> list[Run]:
    shape = dict.fromkeys(PLAN.arms, (0.006, 2.0, 0.5, 2)) | changed
    return [made(arm, seed, *shape[arm]) for seed in PLAN.confirmatory for arm in PLAN.arms]


def test_the_preregistration_is_frozen_and_made_for_this_world() -> None:
    TERMS.verify()
    assert PLAN.setting.world == VerifiableWorld().fingerprint
    assert len(PLAN.jobs()) == len(PLAN.arms) * len(PLAN.confirmatory)
    for change, text in (
        ({"arms": ["quick"]}, "no arm 'quick'"),
        ({"target": 0.55}, "0.55 is not"),
    ):
        study = (TERMS.study or {}) | change
        with pytest.raises(PreregistrationError, match=text):
            Plan.of(TERMS.model_copy(update={"study": study}))


def test_a_measure_is_read_where_the_reward_first_reaches_the_target() -> None:
    looks = [look("first", 10 * at, r, at, 1) for at, r in enumerate((0.1, 0.3, 0.2, 0.6))]
    assert analysis.at_reward(looks, 0.3, lambda own: own.kl) == pytest.approx(1)
    assert analysis.at_reward(looks, 0.4, lambda own: own.kl) == pytest.approx(2.5)
    assert analysis.at_reward(looks, 0.05, lambda own: own.kl) == 0
    assert math.isnan(analysis.at_reward(looks, 0.7, lambda own: own.kl))
    assert analysis.at_update(looks, 25, lambda own: own.kl) == pytest.approx(2.5)
    assert math.isnan(analysis.at_update(looks, 31, lambda own: own.kl))


def test_claims_follow_the_runs() -> None:
    same = analysis.claims(all_runs(), PLAN)
    assert same["less KL at equal reward"] == "cannot be told"
    assert same["both add up"] == "no"
    better = analysis.claims(
        all_runs(both=(0.008, 0.6, 0.1, 0), both_long=(0.008, 0.6, 0.1, 0), fast=(0.003, 0, 0, 0),
                 slow=(0.0045, 2.0, 0.5, 2)), PLAN,
    )  # fmt: skip
    assert better["less KL at equal reward"] == "less"
    assert better["fewer rollouts to a reward"] == "fewer"
    assert better["both add up"] == "yes"
    assert better["old behaviors at equal reward"] == "higher"
    assert better["less spurious forgetting"] in ("less", "cannot be told")
    assert better["plasticity after a long task"] == "fewer rollouts"
    never = analysis.claims(all_runs(slow=(0.001, 2.0, 0.5, 2)), PLAN)
    assert never["less KL at equal reward"].startswith("cannot be told: a reward was not reached")


def test_fewer_updates_alone_are_no_effect_of_text() -> None:
    """Both damages as slow does at its number of updates: then the text has done nothing."""
    runs = all_runs()
    for run in runs:
        if run.arm == "both":
            run.looks = [own for own in run.looks if own.update <= 80]
    found = analysis.fewer_updates(runs)
    assert found is not None and found.mean == pytest.approx(0, abs=1e-9)
    assert analysis.claims(runs, PLAN)["text, not fewer updates"] != "yes"


def test_the_page_shows_every_arm() -> None:
    session = Session(PLAN, TERMS)
    page = STUDY.text(all_runs(), session)
    assert all(f"| {arm} |" in page for arm in PLAN.arms)
    assert "Made by `python -m experiments fast_slow` at commit" in page
    assert "{" not in page.replace(page[page.index("Made by") : page.index("Confirmatory:")], "")
    STUDY.figures["curves"](all_runs(), PLAN).to_dict()


def premise(rewards: dict[str, tuple[float, float, float]]) -> list[Premise]:
    by_part = {name: dict(zip(PARTS, own, strict=True)) for name, own in rewards.items()}
    looks = [look("proxy", at, 0.1, 0, 1) for at in (0, 10)]
    scores = dict.fromkeys(NAMES, 1.0)
    return [
        Premise(seed, scores, "dash in marks", 216, by_part, by_part, looks, {"weights": 30.0})
        for seed in (1, 2, 3)
    ]


def test_the_premise_holds_only_if_each_side_is_needed() -> None:
    good = {
        "nothing": (0.0, 0.2, 0.0), "text": (0.9, 0.2, 0.2),
        "weights": (0.6, 0.8, 0.1), "both": (0.9, 0.8, 0.9),
    }  # fmt: skip
    assert set(premise_claims(premise(good), PLAN).values()) == {"holds"}
    enough = premise_claims(premise(good | {"weights": (0.6, 0.8, 0.85)}), PLAN)
    assert list(enough.values()).count("does not hold") == 1
    assert set(premise_claims(premise(good)[:1], PLAN).values()) == {"cannot be told from one base"}
    still = premise_claims(premise(good | {"weights": (0.6, 0.2, 0.1)}), PLAN)
    assert still["the weights move the reward, instruction fixed"] == "does not hold"
    page = PREMISE.text(premise(good), Session(PLAN, TERMS))
    assert "Made by `python -m experiments fast_slow --premise` at commit" in page
    assert len(instructions()) == 216 == len(set(instructions()))


def paid(completions: list[str], **_: object) -> list[float]:
    """A reward that an untrained model gets for some of its answers."""
    return [float(len(own) % 2) for own in completions]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        VerifiableWorld, "start", lambda self, seed, *_: self.untrained(seed).eval()
    )
    monkeypatch.setattr(training, "reward", paid)
    monkeypatch.setattr(training, "proxy_reward", paid)
    small = {"problems": 2, "group": 4, "updates": 3, "long": 4, "every": 2, "keep": 2}
    small |= {"cycle_problems": 4, "look_every": 1, "probe_every": 1, "sampled": 6}
    setting = PLAN.setting.model_copy(update=small | {"premise_updates": 2, "rate": 1e-2})
    yield PLAN.model_copy(update={"setting": setting})
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_arms_spend_equal_rollouts_and_only_the_slow_ones_move_weights(tiny: Any) -> None:
    runs = {arm: simulate(arm, 1, tiny) for arm in ("slow", "both", "fast", "both_proxy")}
    for arm, run in runs.items():
        assert len(run.stages) == (1 if arm == "both_proxy" else 2)
        for stage in run.stages:
            assert 24 <= stage.rollouts < 24 + 8 + 24  # a whole update or cycle may end later
        moved = run.looks[-1].kl_plain > 1e-4
        assert moved == (arm != "fast")
        assert run.looks[0].kl == pytest.approx(0, abs=1e-5)
    assert runs["slow"].stages[0].updates == 3
    assert runs["both"].stages[0].updates <= 3
    assert runs["fast"].stages[0].updates == 0
    assert runs["slow"].stages[0].instructions == [""]


@pytest.mark.slow
def test_a_tiny_premise_trains_both_ways(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.fast_slow.premise.instructions", lambda: ["", "dash in marks"])
    found = measure_premise(1, tiny)
    assert found.tried == 2 and len(found.proxy) == 3
    assert found.rewards["weights"] != found.rewards["nothing"]
    assert found.rewards["both"] != found.rewards["text"]
