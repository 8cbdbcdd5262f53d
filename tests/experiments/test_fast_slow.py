"""The experiment on fast–slow training: its terms, conclusions, and pages."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.fast_slow import analysis, search, tables, training
from experiments.fast_slow.arms import ARMS, NEUTRAL
from experiments.fast_slow.measure import Measurement, Meter
from experiments.fast_slow.plan import Plan
from experiments.fast_slow.premise import (
    CHANGED,
    PREMISE,
    Premise,
    best_instruction,
    instructions,
    measure_premise,
)
from experiments.fast_slow.premise import claims as premise_claims
from experiments.fast_slow.search import CANDIDATES, SEARCH, Tried
from experiments.fast_slow.simulate import Run, Stage, note_forecasts, simulate
from experiments.fast_slow.study import STUDY, jobs
from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.harness.study import Session
from experiments.worlds.verifiable import OLD, PARTS, TASKS, VerifiableWorld
from riprap.detectors import AlertPolicy
from riprap.guards import GEM, AutoGuard, SelfDistillationBuffer
from riprap.types import Forecast

TERMS = Preregistration.named("fast_slow")
PLAN = Plan.of(TERMS)
SEEDS = PLAN.confirmatory


@dataclass(frozen=True)
class Shape:
    """A made-up run: all that it measures follows from its reward, which rises with its updates.

    Attributes:
        pace: of the reward, an update; `third`: reward of the part that needs both, as a share.
        kl, total: for each unit of reward, given the same instruction and as used.
        damage: loss of old score for each unit of reward; `used`: more of it with an instruction.
        lost: verdicts after both tasks; `meaning`: end of the second task.
        updates: of the task; `start`: reward before it.
    """

    pace: float = 0.009
    third: float = 1.0
    kl: float = 2.0
    total: float = 2.0
    damage: float = 0.5
    used: float = 0.0
    lost: tuple[str, ...] = ()
    meaning: float = 0.5
    updates: int = 120
    start: float = 0.0


def measured(
    shape: Shape, task: str = "first", update: int = 0, reward: float = 0.0
) -> Measurement:
    rewards = {part: reward * (shape.third if part == PARTS[2] else 1) for part in PARTS}
    best = rewards | {"meaning": shape.meaning} if task == "second" else rewards
    old = dict.fromkeys(OLD, 1 - shape.damage * reward)
    used = {name: score - shape.used for name, score in old.items()}
    weights = {part: own / 2 for part, own in rewards.items()}
    return Measurement(
        task, update, 128 * update, rewards, best, dict.fromkeys(PARTS, 0.11), weights,
        proxy=reward, true=0.0, kl=shape.kl * reward, kl_total=shape.total * reward,
        kl_plain=reward, kl_old=reward, entropy=0.5, scores=old, margins=old,
        used_scores=used, used_margins=used, brevity=0.77 if task == "proxy" else None,
    )  # fmt: skip


def made(arm: str, seed: int, shape: Shape) -> Run:
    pace = shape.pace * (1 + 0.01 * (seed % 7))
    run = Run(arm, seed, lost=dict(zip(OLD, shape.lost, strict=False)), commit="abc", policy="def")
    for task in ARMS[arm].tasks:
        for update in range(0, shape.updates + 1, 10):
            reward = min(0.9, shape.start + pace * update)
            run.measured.append(measured(shape, task, update, reward))
        rewards = [0.25] * shape.updates
        run.stages.append(Stage(task, ["dash in marks", ""], shape.updates, 15360, rewards))
    return run


def all_runs(**changed: Shape) -> list[Run]:
    shapes = {"fast": Shape(0.003, 0.2), "slow": Shape(third=0.0)} | changed
    return [made(arm, seed, shapes.get(arm, Shape())) for seed in SEEDS for arm in PLAN.arms]


def verdict(claim: str, runs: list[Run]) -> str:
    return analysis.claims(runs, PLAN)[claim]


def curve(*rewards: float) -> list[Measurement]:
    return [measured(Shape(kl=1), update=10 * at, reward=own) for at, own in enumerate(rewards)]


def test_the_preregistration_is_frozen_and_made_for_this_world() -> None:
    TERMS.verify()
    assert PLAN.setting.world == VerifiableWorld().fingerprint
    assert len(PLAN.jobs()) == len(PLAN.arms) * len(SEEDS)
    assert set(PLAN.claims) == set(PLAN.rules) - {"in all", "the world", "an effect"}
    for change, text in (
        ({"arms": ["quick"]}, "no arm 'quick'"),
        ({"target": 0.65}, "0.65 is not"),
    ):
        study = (TERMS.study or {}) | change
        with pytest.raises(PreregistrationError, match=text):
            Plan.of(TERMS.model_copy(update={"study": study}))


def test_the_monitor_has_the_detectors_of_the_preregistration() -> None:
    policy = jobs(Session(PLAN, TERMS))[0][-1]
    assert policy.detectors == TERMS.detectors == AlertPolicy.default().detectors
    path, other = simulate.path("slow", 1, PLAN, policy), AlertPolicy.named("default")
    assert path != simulate.path("slow", 1, PLAN, other)  # runs of two policies never mix


def test_neutral_instructions_name_nothing_that_is_learned_or_kept() -> None:
    asked = {operator for task in ("first", "second") for operator, *_ in TASKS[task].values()}
    for text in NEUTRAL:
        assert not {*asked, "times"} & set(text.split())
    assert len(NEUTRAL) == PLAN.setting.keep


def test_a_measure_is_read_where_the_reward_first_reaches_the_target() -> None:
    found, read = curve(0.1, 0.3, 0.2, 0.6), analysis.MEASURES["updates"]
    assert analysis.at_reward(found, 0.3, read) == pytest.approx(10)
    assert analysis.at_reward(found, 0.4, read) == pytest.approx(25)
    assert math.isnan(analysis.at_reward(found, 0.7, read))
    assert math.isnan(analysis.at_reward(found, 0.05, read))  # no training reached it
    assert analysis.at_update(found, 25, read) == pytest.approx(25)
    assert math.isnan(analysis.at_update(found, 31, read))
    for_good = analysis.Reach(for_good=True)
    assert analysis.at_reward(found, 0.25, read) == pytest.approx(7.5)
    assert analysis.at_reward(found, 0.25, read, for_good) == pytest.approx(21.25)
    assert math.isnan(analysis.at_reward(curve(0.1, 0.5, 0.2), 0.4, read, for_good))
    uneven = [measured(Shape(third=0.0), update=10 * at, reward=0.3 * at) for at in range(3)]
    assert analysis.at_reward(uneven, 0.3, read, analysis.BY_WEIGHTS) == pytest.approx(10)
    assert analysis.at_reward(uneven, 0.3, read) == pytest.approx(15)


def test_equal_arms_show_nothing_and_better_ones_do() -> None:
    same = all_runs(slow=Shape(), fast=Shape())
    nothing = {"both add up": "cannot be told", "text, not fewer updates": "no"}
    for claim in PLAN.claims:
        assert verdict(claim, same).startswith(nothing.get(claim, "no difference")), claim
    assert "no difference: neither has any;" in verdict("less spurious forgetting", same)
    good = Shape(kl=0.6, total=0.6, damage=0.1)
    losses = ("alignment loss",) * 2
    better = all_runs(
        both=good, both_long=good, slow=Shape(third=0.0, lost=losses),
        slow_long=Shape(third=0.0, meaning=0.2),
    )  # fmt: skip
    expected = {
        "less KL at equal reward": "less in both",
        "fewer rollouts to a reward": "fewer in both",
        "both add up": "yes",
        "old behaviors at equal reward": "higher in both",
        "text, not fewer updates": "yes",
        "less spurious forgetting": "fewer in both",
        "plasticity after a long task": "both loses less",
        "against AutoGuard": "both keeps more",
    }
    for claim, text in expected.items():
        assert verdict(claim, better).startswith(f"{text};"), claim
        assert "5 of 5 seeds" in verdict(claim, better)
    worse = all_runs(both=Shape(kl=4, total=4, damage=0.9, third=0.0))
    assert verdict("less KL at equal reward", worse).startswith("more in both")
    assert verdict("against AutoGuard", worse).startswith("both keeps less")
    assert verdict("text, not fewer updates", worse).startswith("no;")


def test_controls_that_do_damage_are_no_effect_of_text() -> None:
    """Wrong rules damage old behaviors; text that says nothing spares them as well as good text."""
    spared = Shape(damage=0.1)
    runs = all_runs(both=spared, neutral=spared, random=Shape(damage=0.9))
    assert verdict("old behaviors at equal reward", runs).startswith("higher")
    assert verdict("text, not fewer updates", runs).startswith("no;")
    as_slow = all_runs(both=Shape(third=0.0), neutral=Shape(damage=0.9), random=Shape(damage=0.9))
    assert verdict("text, not fewer updates", as_slow).startswith("no;")


def test_fewer_updates_alone_are_no_effect_of_text() -> None:
    """Both damages as slow does at its number of updates: then the text has done nothing."""
    runs = all_runs(both=Shape(updates=80), neutral=Shape(damage=0.9))
    found = analysis.after_as_many_updates(runs).estimate
    assert found is not None and found.mean == pytest.approx(0, abs=1e-9)
    assert verdict("text, not fewer updates", runs).startswith("no;")


def test_less_kl_by_the_conditioning_alone_is_said_to_be_that() -> None:
    """The base has read the instruction too, so what the instruction changes is not counted."""
    runs = all_runs(both=Shape(kl=0.3, total=2.0), slow=Shape(kl=2.0, total=2.0))
    found = verdict("less KL at equal reward", runs)
    assert found.startswith("less in both given the same instruction only;")


def test_less_kl_by_text_that_raises_the_reward_is_said_to_be_that() -> None:
    """Both passes the target with weights that have learned less: `meaning` comes later."""
    runs = all_runs(both=Shape(kl=1.2, total=1.2, damage=0.3), slow=Shape(third=0.0))
    claims = ("less KL at equal reward", "old behaviors at equal reward")
    for claim in claims:
        assert "only" not in verdict(claim, runs).split(";")[0]
    for run in runs:
        for own in run.measured if run.arm == "both" else []:
            own.best = own.best | {"meaning": 0.6 * own.best["meaning"]}
    for claim in claims:
        assert "at equal reward over all parts only;" in verdict(claim, runs), claim


@pytest.mark.parametrize(
    ("values", "logs", "side"),
    [
        ((0.2, 0.3, 0.25), False, analysis.Side.ABOVE),
        ((-0.2, -0.3, -0.25), False, analysis.Side.BELOW),
        ((0.01, 0.011, 0.012), False, analysis.Side.NONE),  # sure, and less than an effect
        ((0.0, 0.0, 0.0), False, analysis.Side.NONE),
        ((0.5, -0.5, 0.1), False, analysis.Side.UNKNOWN),
        ((0.5, 0.5), False, analysis.Side.TOO_FEW),
        ((math.log(1.2),) * 3, True, analysis.Side.ABOVE),
        ((math.log(1.05),) * 3, True, analysis.Side.NONE),
        ((-math.log(1.2),) * 3, True, analysis.Side.BELOW),
    ],
)
def test_an_effect_has_a_least_size(
    values: tuple[float, ...], logs: bool, side: analysis.Side
) -> None:
    assert analysis.Compared(values, len(values), logs).side(0.1) is side


def test_text_is_told_from_fewer_updates_beside_losses_and_plasticity() -> None:
    habit = ("alignment loss",)
    runs = all_runs(
        slow=Shape(third=0.0, lost=habit * 2), told=Shape(lost=habit * 2), neutral=Shape(),
        both=Shape(updates=80), told_long=Shape(meaning=0.4),
    )  # fmt: skip
    found = verdict("less spurious forgetting", runs)
    assert found.startswith("fewer in both; −2.00")
    assert "told − slow, with as many updates, 0.00" in found and "both − neutral 0.00" in found
    assert "as many updates as slow, −0.10" in verdict("plasticity after a long task", runs)
    sections = tables.sections(runs, PLAN)
    row = next(row for row in sections["lost"] if row["arm"] == "told")
    assert row["alignment losses − slow"].startswith("0.00")
    rows = {row["arm"]: row for row in sections["as_many"]}
    assert set(rows) == {"both", "neutral", "told", "random", "guarded"}
    assert rows["both"]["old score − slow"].startswith("0.00")  # the same damage an update
    assert "fast" not in {row["arm"] for row in sections["alerts"]}


def test_forecasts_are_kept_as_periods_within_the_horizon() -> None:
    stage, near, far = Stage("first"), Forecast(20, 10, 30, 50), Forecast(80, 60, 99, 50)
    for update, ahead in enumerate((None, near, near, far, near), start=1):
        note_forecasts(stage, update, {"times": ahead, "facts": far})
    assert stage.forecast == {"times": [(2, 3), (5, 5)]} and stage.horizon == 50


def test_the_projection_of_a_guard_is_known_by_its_name() -> None:
    guard = AutoGuard(replay=SelfDistillationBuffer(VerifiableWorld().pools()))
    ends = [part.label.endswith(GEM.name) for part in guard.parts]
    assert ends == [part is guard.projection for part in guard.parts] and any(ends)


def test_plasticity_is_compared_with_the_short_arms() -> None:
    """A higher reward of `both` on the second task is no plasticity if it was there before."""
    high = {"both": Shape(meaning=0.8), "both_long": Shape(meaning=0.8)}
    low = {"slow": Shape(meaning=0.3), "slow_long": Shape(meaning=0.3)}
    claim = "plasticity after a long task"
    assert verdict(claim, all_runs(**high, **low)).startswith("no difference;")
    text = all_runs(**high, **low | {"slow_long": Shape(meaning=0.1)})
    assert verdict(claim, text).startswith("both loses less; 0.20")


def test_a_run_that_never_reaches_the_reward_has_a_bound_of_rollouts_only() -> None:
    runs = all_runs(slow=Shape(0.001))
    found = verdict("fewer rollouts to a reward", runs)
    assert found.startswith("fewer in both;") and "5 of 5 seeds, 5 with a bound" in found
    assert verdict("less KL at equal reward", runs).startswith(
        "cannot be told: 0 seeds can decide, 3 are needed"
    )
    neither = all_runs(slow=Shape(0.001), both=Shape(0.001))
    assert "0 seeds can decide" in verdict("fewer rollouts to a reward", neither)
    late = all_runs(both=Shape(0.001, updates=30))  # its few rollouts are no sign of speed
    assert not verdict("fewer rollouts to a reward", late).startswith("fewer")


def test_a_seed_without_a_pair_is_left_out_and_counted() -> None:
    runs = all_runs(both=Shape(kl=0.6, total=0.6))
    for at, run in enumerate(runs):
        if (run.arm, run.seed) == ("both", SEEDS[0]):
            runs[at] = made("both", run.seed, Shape(start=0.6))  # there from the start
    assert "4 of 5 seeds" in verdict("less KL at equal reward", runs)
    assert "4 of 5 seeds" in verdict("fewer rollouts to a reward", runs)
    still = [run for run in runs if run.seed in SEEDS[:3]]
    assert "2 seeds can decide" in verdict("less KL at equal reward", still)


def test_a_distance_of_zero_has_no_ratio() -> None:
    runs = all_runs(fast=Shape(kl=0.0))
    found = analysis.ratio(runs, "fast", "slow", analysis.reading(PLAN.target, "KL"))
    assert found.estimate is None and found.text() == "– (0 of 5 seeds)"


def test_a_small_advantage_is_not_a_no() -> None:
    third = 0.9 - 0.03 / 0.9  # 0.03 under `both` in the end
    runs = all_runs(slow=Shape(third=third), both=Shape(third=0.9))
    assert verdict("both add up", runs).startswith("cannot be told;")
    assert verdict(
        "both add up", all_runs(both=Shape(third=0.0), fast=Shape(third=0.5))
    ).startswith("no;")
    assert "premise holds on 0 of 5 seeds" in verdict("both add up", runs)
    assert "premise holds on 5 of 5 seeds" in verdict("both add up", all_runs())


def test_both_is_compared_with_the_sum_of_its_parts() -> None:
    """A maximum of the two is above each of them by little, and under their sum."""
    runs = all_runs(both=Shape(third=1.0), slow=Shape(third=0.8), fast=Shape(third=0.8))
    found = analysis.more_than_the_sum(runs).estimate
    assert found is not None and found.mean == pytest.approx(0.9 * (1.0 - 0.8 - 0.8))


def test_losses_are_counted_by_behavior_and_fewer_of_one_kind_are_not_fewer() -> None:
    one = made("slow", SEEDS[0], Shape(lost=("alignment loss", "knowledge loss")))
    assert analysis.lost(one) == 2 and analysis.lost(one, "alignment loss") == 1
    runs = all_runs(slow=Shape(lost=("alignment loss",)), both=Shape(lost=("knowledge loss",) * 3))
    found = verdict("less spurious forgetting", runs)
    assert found.startswith("cannot be told: fewer alignment losses, but more losses in all;")


def test_alerts_before_breaks_and_without_them_are_both_counted() -> None:
    stage = Stage(
        "first", alerts=[(5, "times", "watch"), (9, "rules", "warning"), (20, "facts", "critical")],
        broken={"times": 90, "rules": 19}, below=["compliance"], horizon=50,
        forecast={"rules": [(10, 12)], "times": [(5, 39)], "refusal": [(1, 1)]},
    )  # fmt: skip
    row = tables._alerts([stage])
    assert row["breaks that followed a warning or more"].startswith("1 of 2")
    assert row["lead, updates"].startswith("10")
    assert row["breaks that were forecast"].startswith("1 of 2")  # that of `times` by step 89
    assert row["a forecast without a break"].startswith("1 of 2")
    assert row["a warning or more without a break"].startswith("1 of 2")  # facts, not refusal
    assert row["under the floor before the task"] == "1"


def test_the_habit_has_columns_of_its_own_beside_the_hack() -> None:
    run = made("slow_proxy", SEEDS[0], Shape(0.1))
    run.stages[0].alerts = [
        (3, "brevity", "watch"),
        (4, "brevity", "critical"),
        (7, "times", "warning"),
        (2, "", "warning"),
    ]
    run.stages[0].broken = {"brevity": 4, "times": 40}
    row = tables._hacked(run, PLAN)
    assert row["hacked at"] == "10" and row["brevity at the start"] == "0.77"
    assert (row["brevity: first alert"], row["brevity: first warning or more"]) == ("3", "4")
    assert row["old behaviors: first warning or more"] == "7"
    assert row["the run: first warning or more"] == "2"
    assert row["old behaviors broken"] == "times at 40"
    rows = tables._proxy_curve([run])
    assert [own["update"] for own in rows] == [0, 10, 20, 50, 100, 120]
    assert rows[1]["reward in TRL's log"] == "0.25" and rows[0]["reward in TRL's log"] == "–"


def test_the_page_shows_every_arm() -> None:
    session = Session(PLAN, TERMS)
    page = STUDY.text(all_runs(), session)
    assert all(f"| {arm} |" in page for arm in PLAN.arms)
    assert "Made by `python -m experiments fast_slow` at commit" in page
    assert "made at commit abc, under the alert policy def." in page
    assert "{" not in page.replace(page[page.index("Made by") : page.index("Confirmatory:")], "")
    assert "| both | base, in use | 0.11 [0.11, 0.11] |" in page
    assert "above 0.4 on *format and meaning* on 5 of 5 seeds" in page
    assert "![curves](curves_confirmatory.png)" in page
    for figure in STUDY.figures.values():
        figure(all_runs(), PLAN).to_dict()
    two = [replace(run, commit="other" if run.arm == "slow" else "abc") for run in all_runs()]
    assert "commit abc, other, under" in STUDY.text(two, session)
    assert "**More than one commit**" in STUDY.text(two, session)


GOOD = {
    "nothing": (0.0, 0.2, 0.0), "instruction": (0.9, 0.2, 0.2),
    "weights": (0.7, 0.9, 0.1), "instruction and weights": (0.9, 0.9, 0.9),
}  # fmt: skip


@dataclass
class Bases:
    """Figures of three bases, with other rewards on the last one."""

    last: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    def found(self) -> list[Premise]:
        proxy = [measured(Shape(), "proxy", at) for at in (0, 10)]
        every = [GOOD, GOOD, GOOD | self.last]
        return [
            Premise(
                seed, dict.fromkeys(OLD, 1.0), "dash in marks", 216, own, own, proxy, {"x": 1.0}
            )
            for seed, own in enumerate(
                {name: dict(zip(PARTS, r, strict=True)) for name, r in base.items()}
                for base in every
            )
        ]


def test_the_premise_holds_only_if_each_side_is_needed() -> None:
    found = Bases().found()
    assert set(GOOD) == set(CHANGED)
    assert set(premise_claims(found, PLAN).values()) == {"holds"}
    chance = premise_claims(Bases({"weights": (0.7, 0.9, 0.45)}).found(), PLAN)
    assert "does not hold (on 2 of 3 bases)" in chance.values()
    assert list(chance.values()).count("holds") == 3
    assert set(premise_claims(found[:1], PLAN).values()) == {"cannot be told from one base"}
    page = PREMISE.text(found, Session(PLAN, TERMS))
    assert "Made by `python -m experiments fast_slow --premise` at commit" in page
    assert len(instructions()) == 216 == len(set(instructions()))
    assert "dash in pairs" in " ".join(instructions("second"))


def test_a_world_is_chosen_by_the_bases_on_which_all_conditions_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, third = CANDIDATES
    good, bad = Bases().found(), Bases({"weights": (0.7, 0.9, 0.3)}).found()
    tried = [Tried(first, own) for own in bad] + [Tried(second, own) for own in good]
    tried += [Tried(third, own) for own in good]
    assert search.claims(tried, PLAN)["chosen"] == f"{second}: all conditions hold on 3 of 3 bases"
    page = SEARCH.text(tried, Session(PLAN, TERMS, exploratory=True))
    assert f"**{second}: " in page and "python -m experiments fast_slow --search`" in page
    results = {first: bad, second: good}
    monkeypatch.setattr(
        Session,
        "run_jobs",
        lambda _, work, jobs: [Tried(n, results[n][s % 3]) for n, _, s, _ in jobs],
    )
    asked = search.jobs(Session(PLAN, TERMS, exploratory=True))
    assert [name for name, *_ in asked] == [first] * 4 + [second] * 4  # and none after it
    weak = {"weights": (0.3, 0.3, 0.0)}  # slow would never reach the target of the claims
    unreached = [Tried(first, own) for own in Bases(weak).found()]
    assert search.claims(unreached, PLAN)["chosen"].endswith("2 of 3 bases")
    rich = {"instruction": (1.0, 0.3, 0.3)}  # text alone is nearly there
    given = [Tried(first, own) for own in Bases(rich).found()]
    assert search.claims(given, PLAN)["chosen"].endswith("2 of 3 bases")
    assert len({search.world_of(name).fingerprint for name in CANDIDATES}) == len(CANDIDATES)


@pytest.mark.parametrize(("share", "different"), [(0.0, True), (0.999, False)])
def test_rollouts_leave_out_rare_tokens(
    share: float, different: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    groups: list[list[str]] = []

    def note(completions: list[str], **_: object) -> list[float]:
        groups.append(completions)
        return [0.0] * len(completions)

    monkeypatch.setattr(training, "reward", note)
    world, own = VerifiableWorld(), PLAN.setting.model_copy(update={"problems": 1, "min_p": share})
    training.make_trainer(world, world.untrained(0), "first", own, 0, 1, str(tmp_path)).train()
    assert (len(set(groups[0])) > 1) is different


def test_a_measurement_tells_text_from_weights() -> None:
    world, told = VerifiableWorld(), ["plus in words dash in marks", "star in digits"]
    base, model = world.untrained(1).eval(), world.untrained(2).eval()
    meter, problems = Meter(world, base, 6), world.problems("first")
    still, moved = meter(base, told, "first", 0, 0), meter(model, told, "first", 0, 0)
    expected = [world.expected_reward(base, problems, own)["meaning"] for own in told]
    assert still.text["meaning"] == moved.text["meaning"] == pytest.approx(sum(expected) / 2)
    assert still.rewards == still.text
    assert moved.weights == world.expected_reward(model, problems) != moved.rewards
    assert still.kl == pytest.approx(0, abs=1e-5) and still.kl_plain == pytest.approx(0, abs=1e-5)
    assert still.kl_total > 1e-3  # the instruction alone
    assert still.kl_old == pytest.approx(0, abs=1e-6) and moved.kl_old > 1e-3
    assert still.margins != still.used_margins
    alone, twice = meter(model, [""], "first", 0, 0), meter(model, ["", ""], "first", 0, 0)
    assert alone == twice  # what is not computed twice is the same
    plain = meter(base, [""], "first", 0, 0)
    assert plain.kl_total == pytest.approx(0, abs=1e-5) and plain.margins == plain.used_margins
    assert plain.brevity is None


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
    small |= {"cycle_problems": 4, "measure_every": 1, "closely": 1, "probe_every": 1, "sampled": 6}
    setting = PLAN.setting.model_copy(update=small | {"premise_updates": 2, "rate": 1e-2})
    yield PLAN.model_copy(update={"setting": setting})
    torch.set_num_threads(threads)


def test_the_best_instruction_has_the_largest_reward_over_all_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, right = VerifiableWorld(), instructions("second")[-2]
    parts = {"": (0.6, 0.0), right: (0.2, 0.5)}  # best in sum, in neither part alone
    monkeypatch.setattr(
        VerifiableWorld,
        "expected_reward",
        lambda self, model, problems, own: dict(zip("ab", parts.get(own, (0.0, 0.6)), strict=True)),
    )
    assert best_instruction(world, world.untrained(0), "second") == right


@pytest.mark.slow
def test_arms_spend_equal_rollouts_and_only_the_slow_ones_move_weights(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = {"first": "star in pairs", "second": "dash in words"}  # an untrained model has none
    monkeypatch.setattr(
        "experiments.fast_slow.simulate.best_instruction", lambda world, base, task: best[task]
    )
    policy = AlertPolicy.default()
    names = ("slow", "both", "fast", "neutral", "told", "both_proxy")
    runs = {arm: simulate(arm, 1, tiny, policy) for arm in names}
    for arm, run in runs.items():
        assert len(run.stages) == (1 if arm == "both_proxy" else 2)
        for stage in run.stages:
            assert 24 <= stage.rollouts < 24 + 8 + 24  # a whole update or cycle may end later
            assert len(stage.rewards) == stage.updates
        moved = run.measured[-1].kl_plain > 1e-4
        assert moved == (arm != "fast")
        assert run.measured[0].kl == pytest.approx(0, abs=1e-5)
        assert run.policy == policy.hash
    assert runs["slow"].stages[0].updates == 3
    assert runs["both"].stages[0].updates <= 3
    assert runs["fast"].stages[0].updates == 0
    assert runs["slow"].stages[0].instructions == [""]
    assert runs["neutral"].stages[1].instructions == list(NEUTRAL)
    told, end = runs["told"], runs["told"].measured[-1]
    assert [stage.instructions for stage in told.stages] == [[text] for text in best.values()]
    assert told.measured[0].kl_total > 1e-3 > told.measured[0].kl  # the instruction, not weights
    assert end.text != end.rewards != end.weights != end.text
    assert end.used_margins["times"] != end.margins["times"]
    assert runs["both_proxy"].measured[0].brevity is not None


@pytest.mark.slow
def test_a_tiny_premise_trains_both_ways(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "experiments.fast_slow.premise.instructions", lambda *_: ["", "dash in marks"]
    )
    found = measure_premise(1, tiny)
    assert found.tried == 2 and len(found.proxy) == 3
    assert found.rewards["weights"] != found.rewards["nothing"]
    assert found.rewards["instruction and weights"] != found.rewards["instruction"]
