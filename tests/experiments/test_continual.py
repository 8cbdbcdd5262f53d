"""The continual experiment: plan, runs end to end on a small world, and conclusions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.continual import analysis, claims, controls, simulate, tables
from experiments.continual.measure import Group, StageMeter, groups, linear_weights
from experiments.continual.methods import CONTROLS, FEWER, METHODS, PLAIN, STRATEGIES, numbered
from experiments.continual.plan import GIVEN, LEAST_HARM, MODERATE, Plan
from experiments.continual.simulate import Run
from experiments.continual.study import figure
from experiments.harness.markdown import fill
from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.harness.study import FOLDER, Session
from experiments.worlds.continual import TASKS, ContinualWorld
from small_continual import CONFIG, SEED, small

STEPS = 5


@pytest.fixture(scope="module")
def plan() -> Plan:
    preregistration = Preregistration.named("continual")
    preregistration.verify()
    return Plan.of(preregistration)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ContinualWorld:
    """A world that starts as `small` does, and in which a stage takes a moment."""
    quick = ContinualWorld(replace(CONFIG, steps=STEPS))
    monkeypatch.setattr(quick, "aligned", small().aligned)
    monkeypatch.setattr(quick, "pretrained", small().pretrained)
    monkeypatch.setattr(simulate, "_world", lambda: quick)
    monkeypatch.chdir(tmp_path)
    return quick


@pytest.fixture
def short(world: ContinualWorld, plan: Plan) -> Plan:
    return plan.model_copy(update={"world": world.fingerprint, "audited": (0, 3)})


def test_the_plan_is_frozen_and_made_for_this_world(plan: Plan) -> None:
    assert plan.world == ContinualWorld().fingerprint
    assert set(plan.orders[GIVEN]) == set(TASKS)
    assert all(sorted(order) == sorted(TASKS) for order in plan.orders.values())


def test_the_plan_lists_each_run_once(plan: Plan) -> None:
    jobs = plan.jobs()
    assert len(jobs) == len(set(jobs))
    assert {(m, GIVEN, s) for m in METHODS for s in plan.confirmatory} <= {
        (method, order, seed) for method, _, order, seed in jobs
    }
    assert not {seed for *_, seed in jobs} & set(plan.exploratory)
    assert {order for method, _, order, _ in jobs if method == LEAST_HARM} == set(plan.orders)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"exploratory": [400]}, "both exploratory and confirmatory"),
        ({"orders": {"turned": list(TASKS)}}, "orders has no 'given'"),
        ({"ratoi": 0.2}, "did you mean 'ratio'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(change: dict[str, Any], why: str) -> None:
    preregistration = Preregistration.named("continual")
    changed = preregistration.model_copy(
        update={"study": {**(preregistration.study or {}), **change}}
    )
    with pytest.raises(PreregistrationError, match=why):
        Plan.of(changed)


def test_another_world_is_refused(world: ContinualWorld, short: Plan) -> None:
    other = short.model_copy(update={"world": "0" * 64})
    with pytest.raises(PreregistrationError, match="made for world 000000000000"):
        simulate.simulate(PLAIN, 1.0, GIVEN, SEED, other)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["plain", "moderate", "least_harm", "adaptive", "kl", "o_lora"])
def test_a_run_end_to_end(method: str, short: Plan) -> None:
    run = simulate.simulate(method, short.value(method), GIVEN, SEED, short)
    stages = len(TASKS)
    assert len(run.accuracy) == len(run.scores) == len(run.outputs) == stages + 1
    assert run.updates == stages * STEPS
    whole = run.updates * CONFIG.batch
    fifth = run.updates * int(0.2 * CONFIG.batch)
    assert run.rows <= fifth if method in STRATEGIES else run.rows == whole
    assert all(sum(shares.values()) == pytest.approx(1) for shares in run.taken)
    assert run.scores[0]["refusal"] >= 0.95 and run.outputs[0]["from aligned"] == pytest.approx(0)
    assert run.outputs[-1]["from aligned"] > 0 and run.alignment[-1]["topk"] != 0
    assert len(run.audit) == (stages * 2 * 3 if method == PLAIN else 0)


def test_fewer_steps_see_as_many_rows_as_a_fifth_of_each_batch(short: Plan) -> None:
    run = simulate.simulate(FEWER, 0.2, GIVEN, SEED, short)
    assert run.updates == len(TASKS) * STEPS // 5
    assert run.rows == run.updates * CONFIG.batch


def test_the_number_of_a_row_tells_its_place_and_category(world: ContinualWorld) -> None:
    rows = next(world.batches("sorting", SEED))
    numbers = numbered(rows)["row"]
    assert (numbers % len(rows)).tolist() == list(range(len(rows)))
    assert torch.equal(numbers // len(rows), rows.category)


@pytest.mark.slow
@pytest.mark.parametrize("method", CONTROLS)
def test_a_control_takes_what_moderate_takes(method: str, short: Plan) -> None:
    """In the first step, in which both have the same model."""
    plan = short.model_copy(update={"orders": {GIVEN: ("sorting",)}})
    taken = {}
    for name in (MODERATE, method):
        run = simulate.simulate_batches(name, SEED, 1, plan)
        assert run.rows == STEPS * int(0.2 * CONFIG.batch)
        taken[name] = run
    own = [run.taken[0] for run in taken.values()]
    assert own[0].keys() == own[1].keys()
    if "category" in method:
        assert own[0] == pytest.approx(own[1], abs=0.25)
    else:
        tokens = [run.tokens for run in taken.values()]
        assert tokens[0] == pytest.approx(tokens[1], abs=0.75)


@pytest.mark.slow
def test_the_batches_have_a_seed_of_their_own(short: Plan) -> None:
    plan = short.model_copy(update={"audited": ()})
    same = simulate.simulate(MODERATE, 0.2, GIVEN, SEED, plan)
    own = simulate.simulate_batches(MODERATE, SEED, SEED, plan)
    other = simulate.simulate_batches(MODERATE, SEED, SEED + 1, plan)
    assert replace(own, seconds=0.0) == replace(same, seconds=0.0)
    assert other.scores[0] == own.scores[0] and other.margins[-1] != own.margins[-1]


@pytest.mark.slow
def test_a_run_is_read_again(short: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = simulate.simulate(PLAIN, 1.0, GIVEN, SEED, short)
    monkeypatch.setattr(simulate, "_world", lambda: pytest.fail("it was made again"))
    assert simulate.simulate(PLAIN, 1.0, GIVEN, SEED, short) == made
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
def test_runs_repeat(short: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = simulate.simulate(MODERATE, 0.2, GIVEN, SEED, short)
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    other = simulate.simulate(MODERATE, 0.2, GIVEN, SEED, short)
    assert replace(one, seconds=0.0) == replace(other, seconds=0.0)


@pytest.mark.slow
def test_kl_holds_on_to_the_aligned_model(short: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to what each stage starts from, or it would let go a little at every stage."""
    seen = []
    kept = simulate._Sequence._guarded

    def watched(self: Any, model: Any, optimizer: Any) -> Any:
        seen.append(self.guard_state)
        return kept(self, model, optimizer)

    monkeypatch.setattr(simulate._Sequence, "_guarded", watched)
    simulate.simulate("kl", 3.0, GIVEN, SEED, short)
    assert seen[0] is None and len(seen) == len(TASKS)
    assert all(one is seen[1] for one in seen[2:]) and seen[1]["references"]


def test_the_way_back_is_1_on_the_way_back(world: ContinualWorld) -> None:
    before, after = world.pretrained(SEED).eval(), world.aligned(SEED).eval()
    measure = StageMeter(world, before, after, 100)
    back = measure(before)
    assert back.alignment["topk"] == pytest.approx(1) and back.alignment["whole"] == pytest.approx(
        1
    )
    assert back.outputs["from pretrained"] == pytest.approx(0, abs=1e-6)
    assert back.scores["refusal"] == 0
    away = [-part for part in measure.back]
    assert measure.toward_pretrained(away)["topk"] == pytest.approx(-1)
    assert len(linear_weights(after)) == 7 * world.config.layers


def test_groups_by_norm() -> None:
    norms = torch.tensor([5.0, 1.0, 3.0, 9.0, 2.0, 3.5, 8.0, 0.5, 3.9, 7.0])
    found = groups(norms)
    assert set(found["low"].tolist()) == {7, 1}
    assert set(found["high"].tolist()) == {3, 6}
    assert set(found["moderate"].tolist()) == {5, 8}  # the lower median is 3.5


def run_of(
    method: str,
    value: float,
    success: list[float],
    own: float,
    seed: int = 400,
    order: str = GIVEN,
    truth: float = 1.0,
    topk: float = 0.1,
) -> Run:
    """A run whose tasks are learned to `own` and are at half of that in every later stage."""
    accuracy = [[0.0] * 4]
    accuracy += [[own / 2 if j < t else own if j == t else 0.0 for j in range(4)] for t in range(4)]
    scores = [{"refusal": 1.0, "truth": 1.0, "facts": 1.0, "format": 1.0}]
    scores += [
        {"refusal": 1 - share, "truth": truth, "facts": 0.5, "format": 0.5} for share in success
    ]
    names = ("from pretrained", "to pretrained", "from aligned", "to aligned")
    return Run(
        method,
        value,
        order,
        seed,
        list(TASKS),
        accuracy,
        scores,
        scores,
        [dict.fromkeys(names, float(at)) for at in range(5)],
        [{"topk": topk * share, "whole": 0.0, "topk_stage": 0.0} for share in (0.0, *success)],
        seconds=10.0 if method == PLAIN else 15.0,
        updates=600,
        rows=5400,
        taken=[{"own": 0.6, "familiar": 0.2, "prose": 0.2}] * 4,
        tokens=3.0,
    )


def every_run(plan: Plan, moderate: float, own: float = 0.9) -> list[Run]:
    """One run for each job, in which all but the moderate rows erode as 0, 0.2, 0.4, 0.6."""
    found = []
    for method, value, order, seed in plan.jobs():
        fall = moderate if method == MODERATE else 1.0
        success = [0.2 * at * fall for at in range(4)]
        learned = own if method == MODERATE else 0.5 if method == "low" else 0.9
        found.append(run_of(method, value, success, learned, seed, order))
    return found


def groups_of(prose: tuple[float, float, float], topk: tuple[float, float, float]) -> list[Group]:
    names = ("low", "moderate", "high")
    return [
        Group(
            "sorting", 0, name, {"own": 1 - p, "familiar": 0.0, "prose": p}, 2.0, 1.0, 1.0, t, 0.0
        )
        for name, p, t in zip(names, prose, topk, strict=True)
    ]


def test_numbers_by_hand() -> None:
    run = run_of(MODERATE, 0.2, [0.0, 0.2, 0.4, 0.6], 0.8)
    assert analysis.attack_success(run) == pytest.approx([0.0, 0.2, 0.4, 0.6])
    assert run.learned == pytest.approx(0.8)
    assert analysis.kept(run) == pytest.approx((0.7 + 1.0 + 0.5 + 0.5) / 4)
    found = analysis.metrics(run)
    assert found.backward_transfer == pytest.approx(-0.4)
    assert found.forgetting == pytest.approx(0.4) and found.max_drop == pytest.approx(0.4)
    assert found.total_interference == pytest.approx(4 * 0.8 - 3 * 0.4)  # the start counts
    row = analysis.rows([run_of(PLAIN, 1.0, [1.0] * 4, 0.9), run])[1]
    assert row.cost.tolist() == [1.5] and row.success.mean() == pytest.approx(0.3)
    assert row.outputs["to aligned"].tolist() == [2.5]  # stages 1 to 4


def test_the_search_marks_down_what_is_not_learned() -> None:
    plain = run_of(PLAIN, 1.0, [1.0] * 4, 0.8)
    lazy = run_of("ewc", 1e7, [0.0] * 4, 0.1)
    able = run_of("ewc", 1e3, [0.2] * 4, 0.78)
    assert analysis.choose([plain, lazy, able], 0.95) == {"ewc": 1e3}
    assert analysis.objective(lazy, plain, 0.95) == pytest.approx(0.75 * (0.1 / 0.8) / 0.95)
    assert analysis.objective(able, plain, 0.95) == pytest.approx(analysis.kept(able))


def test_claims_are_met_where_the_paper_is_right(plan: Plan) -> None:
    rows = analysis.rows(every_run(plan, 0.3))
    right = groups_of((0.0, 0.1, 0.5), (-0.2, 0.0, 0.2))
    assert all(one.met for one in claims.claims(rows, right, plan))


def test_claims_are_missed_where_it_is_not(plan: Plan) -> None:
    rows = analysis.rows(every_run(plan, 1.4, own=0.4))
    wrong = groups_of((0.5, 0.1, 0.0), (0.2, 0.0, -0.2))
    found = claims.claims(rows, wrong, plan)
    right = [one.claim for one in found if one.met]
    assert right == ["TopK cosine of what moved goes with attack success (p < 0.05)"]


def test_equal_attack_success_is_not_lower(plan: Plan) -> None:
    rows = analysis.rows(every_run(plan, 1.0))
    groups = groups_of((0.0, 0.1, 0.5), (-0.2, 0.0, 0.2))
    found = claims.claims(rows, groups, plan)
    assert [one.met for one in found if "erode" in one.claim] == [False, False]


def test_correlations_by_hand() -> None:
    """Both are multiples of each other, but for one method's sign."""
    rows = analysis.rows([run_of(PLAIN, 1.0, [0.1, 0.2, 0.3, 0.4], 0.9)])
    points = claims.correlations(rows)[0]
    assert points.n == 4 and points.pearson == pytest.approx(1) and points.spearman == 1
    against = run_of("clip", 1.0, [0.1, 0.2, 0.3, 0.4], 0.9, topk=-0.1)
    both = analysis.rows([run_of(PLAIN, 1.0, [0.1, 0.2, 0.3, 0.4], 0.9), against])
    assert claims.correlations(both)[0].pearson == pytest.approx(0, abs=1e-9)
    assert np.isnan(claims.correlations(both)[2].pearson)  # two methods are too few


def test_least_harm_is_compared_at_equal_accuracy_only(plan: Plan) -> None:
    runs = [
        run_of(PLAIN, 1.0, [0.5] * 4, 0.9),
        run_of(LEAST_HARM, 0.2, [0.1] * 4, 0.805, truth=0.7),
        run_of(MODERATE, 0.2, [0.3] * 4, 0.8, truth=0.8),
        run_of(MODERATE, 0.4, [0.3] * 4, 0.9),
    ]
    found = {one.ratios: one for one in claims.matches(analysis.rows(runs), plan)}
    assert found[0.2, 0.2].equal and not found[0.2, 0.4].equal
    assert found[0.2, 0.2].met("refusal") and not found[0.2, 0.2].met("truth")
    assert found[0.2, 0.2].met("facts")  # nothing kept less
    assert found[0.2, 0.2].differences["refusal"] == pytest.approx([0.2])


def controlled(plan: Plan, **success: float) -> controls.Results:
    """Runs of the controls' stage that end as given, and others as moderate."""
    session = Session(plan, None)
    runs = [
        run_of(method, 0.2, [success.get(method.split(":")[0], 0.2)] * 4, 0.9, seed)
        for method, seed, _, _ in controls.jobs(session)
    ]
    return controls.collect(runs, session)


def test_gradients_count_only_beyond_both_controls(plan: Plan) -> None:
    both = controls.claims(controlled(plan, random_by_length=0.5, random_by_category=0.4), plan)
    assert both["gradients"] == both[f"moderate against {CONTROLS[0]}"] == "lower"
    assert both["moderate against plain"] == "no difference"
    one = controls.claims(controlled(plan, random_by_length=0.5), plan)
    assert one["gradients"] == "cannot be told"


def test_an_interval_over_models_has_one_value_for_each_of_them(plan: Plan) -> None:
    jobs = controls.jobs(session := Session(plan, None))
    by_model = dict(zip(plan.confirmatory, (0.1, 0.2, 0.6), strict=True))
    runs = [
        run_of(method, 0.2, [by_model[seed] if method == PLAIN else 0.2] * 4, 0.9, seed)
        for method, seed, _, _ in jobs
    ]
    results = controls.collect(runs, session)
    pairs, models = controls.difference(results, PLAIN), controls.over_models(results, PLAIN)
    assert (pairs.n, models.n) == (3 * len(plan.draws), 3)
    assert models.mean == pytest.approx(pairs.mean) == pytest.approx(0.2 - 0.3)
    assert models.high - models.low > 2 * (pairs.high - pairs.low)


def test_the_page_of_the_controls(plan: Plan) -> None:
    results = controlled(plan, plain=0.6)
    cells = len(plan.confirmatory) * len(plan.draws)
    assert set(results) == set(plan.controlled) and len(results[PLAIN]) == cells
    text = fill(
        FOLDER / "continual" / "controls.md",
        made="Made.",
        plan=plan,
        **controls.sections(results, plan),
    )
    assert "{" not in text and "0.60, 0.60, 0.60, 0.60" in text


def test_the_tables_have_every_method(plan: Plan) -> None:
    runs = every_run(plan, 0.3)
    rows = analysis.rows(runs)
    audit = groups_of((0.0, 0.1, 0.5), (-0.2, 0.0, 0.2))
    page = tables.sections(tables.Results(runs, rows, audit), plan)
    for table in ("kept", "forgotten", "moved", "taken"):
        assert [row["method"] for row in page[table]] == list(METHODS)
    chart = figure(claims.main_rows(rows, plan)).to_dict()
    assert "moderate_by_loss" in json.dumps(chart)
