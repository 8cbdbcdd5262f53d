"""Four real tasks in sequence: rows, every method end to end on a tiny model, and conclusions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from experiments.continual_real import analysis, simulate, study, tables
from experiments.continual_real.measure import Look
from experiments.continual_real.methods import (
    CHOSEN,
    FRONT,
    MAIN,
    METHODS,
    SWEPT,
    GivenRows,
    ModerateByLength,
)
from experiments.continual_real.plan import GIVEN, Plan
from experiments.continual_real.rows import TASKS, Row, collate, drawn, harmful_requests, yoked
from experiments.continual_real.simulate import Run, Stage
from experiments.continual_real.study import STUDY
from experiments.harness.jobs import JobError
from experiments.harness.markdown import fill
from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.harness.study import FOLDER, Session
from experiments.smollm2.teaching import teaching_rows
from riprap.errors import ConfigError
from riprap.selection import Scores
from small_real import SETTING, make_model, make_small, small_plan

RATE = 1e-2
UPDATES = len(TASKS) * SETTING.steps


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return make_small(monkeypatch, tmp_path)


def train(method: str, data: Path, order: str = GIVEN) -> Run:
    return simulate.simulate(method, RATE, order, 1, 400, small_plan(), data)


def made(method: str, seed: int, success: float, loss: float, rate: float = 1.0) -> Run:
    """A run that ended with an attack success and a loss, from a base of 0 and 4."""

    def look(share: float, own: float) -> Look:
        said = "".join("01"[at < 10 * share] for at in range(10))
        answered = {tables.RULES: said, tables.DETECTOR: said}
        kept = {"refusal": 1 - share, "over_refusal": 1.0}
        return Look(1, answered, kept, kept, dict.fromkeys(TASKS, own), {"to stock": 0.1})

    looks = [look(success * at / 4, 4 + (loss - 4) * at / 4) for at in range(5)]
    looks[0].safe_refused = looks[-1].safe_refused = "01"
    stages = [Stage(task, 2, 10, {"a": 10}, 3.0, seconds=2.0) for task in TASKS]
    return Run(method, rate, GIVEN, 1, seed, list(TASKS), looks, stages)


def test_a_batch_has_the_loss_of_its_responses() -> None:
    rows = [Row(0, "", (1, 2, 3), (4, 5)), Row(1, "", (6,), (7, 8, 9, 10))]
    batch, model = collate(rows, 256), make_model(0)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 4, 5], [-100, 7, 8, 9, 10]]
    found = model(**batch, logits_to_keep=batch["labels"].shape[1]).loss
    losses = []
    for row in rows:
        logits = model(torch.tensor([row.prompt + row.answer])).logits[0]
        own = logits[len(row.prompt) - 1 : -1]
        losses.append(functional.cross_entropy(own, torch.tensor(row.answer), reduction="sum"))
    assert float(found.detach()) == pytest.approx(
        float(torch.stack(losses).sum().detach() / 6), rel=1e-5
    )


def test_rows_of_other_lengths_do_not_change_a_loss() -> None:
    short, long = Row(0, "", (1, 2), (3,)), Row(1, "", tuple(range(9)), (4,) * 5)
    model, pair = make_model(0), collate([short, long], 256)
    output = model(**pair, logits_to_keep=pair["labels"].shape[1]).logits[0, -2]
    alone = model(torch.tensor([[1, 2, 3]])).logits[0, -2]
    assert torch.allclose(output, alone, atol=1e-5)


def test_rows_are_drawn_once_and_in_an_order_of_the_seed() -> None:
    rows = [Row(at, "", (1,), (2,)) for at in range(12)]
    one, same, other = (drawn(rows, 2, 5, seed) for seed in (1, 1, 2))
    assert one == same != other
    assert len({row.number for batch in one for row in batch}) == 10
    with pytest.raises(ConfigError, match="12 rows are short enough, and 3 updates of 5 rows"):
        drawn(rows, 3, 5, 0)


def test_harmful_requests_were_not_taught(data: Path) -> None:
    asked = harmful_requests(data, 6)
    assert len(set(asked)) == 6 and sum(text.startswith("harm") for text in asked) == 3
    assert not set(asked) & {row.prompt for row in teaching_rows(data)}


def test_moderate_within_lengths_takes_from_different_lengths() -> None:
    tokens = np.repeat([1, 2, 3, 4], 4)
    norms = np.tile([1.0, 2.0, 3.0, 9.0], 4) + 10 * tokens
    scores = Scores(loss=np.ones(16), tokens=tokens, norm=norms)
    for seed in range(5):
        chosen = ModerateByLength().choose(scores, 3, np.random.default_rng(seed))
        assert len(set(tokens[chosen])) == 3
        assert all(at % 4 in (1, 2) for at in chosen)  # beside the median of their length
    firsts = {
        int(ModerateByLength().choose(scores, 1, np.random.default_rng(s))[0]) for s in range(9)
    }
    assert len(firsts) > 1


def test_yoked_rows_have_the_categories_of_others_and_are_other_rows() -> None:
    kinds = "aaaabbc" * 2
    rows = [Row(at, kind, (1,), (2,)) for at, kind in enumerate(kinds)]
    batches = [rows[:7], rows[7:]]
    chosen = {0, 1, 6, 11}  # two of four a, the only c; one of two b
    draws = [yoked(batches, chosen, seed) for seed in range(20)]
    for found in draws:
        assert sorted(kinds[at] for at in found) == ["a", "a", "b", "c"]
        assert found & chosen == {6}  # there is no other c in its batch
        assert len(found & set(range(7))) == 3
    assert {2, 3, 6, 12} in draws and len({frozenset(found) for found in draws}) == 1
    few = yoked(batches, {0, 1, 2}, 0)  # one other a: two of the three are drawn again
    assert 3 in few and len(few & {0, 1, 2}) == 2


def test_rows_that_were_chosen_before_training_are_learned() -> None:
    scores = Scores(loss=np.ones(4), tokens=np.ones(4), category=np.array(["", CHOSEN, CHOSEN, ""]))
    assert GivenRows().choose(scores, 2, np.random.default_rng(0)).tolist() == [1, 2]


def test_rows_without_an_answer_stand_beside_attack_success() -> None:
    runs = [made("moderate", 1, 0.2, 2.0), made("random", 1, 0.8, 2.0)]
    for run, taken in zip(
        runs, ({"without answer": 3, "with answer": 1}, {"with answer": 4}), strict=True
    ):
        stage = next(stage for stage in run.stages if stage.task == "squad_v2")
        stage.taken, stage.rows = taken, 4
    page = tables.sections(runs, small_plan())
    rows = {row["method"]: row for row in page["refusing"]}
    (cell,) = set(rows["moderate"]) - {"method"}
    assert (rows["moderate"][cell], rows["random"][cell]) == ("0.75 → 0.20", "0.00 → 0.80")
    assert rows["random_by_length"][cell] == "–"
    assert page["refusing_rank"] == "−1.00 over 2 runs"


def test_the_categories_of_two_runs_are_compared_by_shares() -> None:
    one, other = made("moderate", 1, 0.2, 2.0), made("random", 1, 0.2, 2.0)
    for run, taken in ((one, {"a": 1, "b": 1}), (other, {"a": 2})):
        for stage in run.stages:
            stage.taken, stage.rows = taken, 2
    assert analysis.unlike(one, other) == pytest.approx(0.5)
    assert analysis.unlike(one, one) == 0


@pytest.mark.slow
def test_a_yoked_run_learns_the_categories_of_its_leader(data: Path) -> None:
    leader, own = train("moderate", data), train("yoked_by_category", data)
    assert not own.failed and own.stages[0].chosen
    for one, two in zip(leader.stages, own.stages, strict=True):
        assert one.taken == two.taken
    assert any(a.chosen != b.chosen for a, b in zip(leader.stages, own.stages, strict=True))
    assert analysis.unlike(own, leader) == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", list(METHODS))
def test_a_run_end_to_end(method: str, data: Path) -> None:
    run = train(method, data)
    assert not run.failed
    own = METHODS[method]
    assert [stage.updates for stage in run.stages] == [SETTING.steps] * len(TASKS)
    assert [look.update for look in run.looks] == [SETTING.steps * at for at in range(5)]
    fifth = max(1, int((own.ratio or SETTING.ratio) * SETTING.batch))
    rows = UPDATES * (fifth if own.strategy else SETTING.batch)
    learned = sum(stage.rows for stage in run.stages)
    if method == "moderate_60":  # of rows with a loss near the mean, there may be fewer
        assert UPDATES * int(0.4 * SETTING.batch) <= learned <= rows
    else:
        assert learned == rows
    assert any("replayed" in stage.taken for stage in run.stages) == own.replays
    assert run.looks[0].losses != run.looks[-1].losses
    assert all(topk == whole == 0 for topk, whole in run.looks[0].cosines.values())
    assert run.looks[0].outputs["from taught"] == pytest.approx(0, abs=1e-6)
    assert len(run.looks[-1].safe_refused) == SETTING.safe and not run.looks[1].safe_refused
    assert set(run.stages[0].margins) == set(simulate.REFUSALS)


@pytest.mark.slow
def test_preflight_leaves_rows_out_while_something_is_left(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = train("preflight_filtered", data)  # a random model refuses nothing
    assert nothing.notes[0] == "no refusal was left before dolly: all of its rows were kept"
    monkeypatch.setattr(simulate, "REFUSALS", simulate.REFUSALS[::-1])  # and answers everything
    simulate.simulate.path("preflight_filtered", RATE, GIVEN, 1, 400, small_plan(), data).unlink()
    run = train("preflight_filtered", data)
    assert not run.failed
    whole = SETTING.steps * SETTING.batch
    assert [s.rows for s in run.stages] == [whole - int(SETTING.filtered * whole)] * len(TASKS)


@pytest.mark.slow
def test_runs_repeat_and_differ_by_method(data: Path, tmp_path: Path) -> None:
    first = train("plain", data)
    assert train("plain", data) == first  # read again
    simulate.simulate.path("plain", RATE, GIVEN, 1, 400, small_plan(), data).unlink()
    again = train("plain", data)
    assert again.looks == first.looks and again.stages[0].losses == first.stages[0].losses
    assert train("random", data).looks[-1].losses != first.looks[-1].losses
    half = train("plain_half_rate", data)
    assert half.stages[0].losses[0] == first.stages[0].losses[0]
    assert half.stages[0].losses[1] != first.stages[0].losses[1]


@pytest.mark.slow
def test_a_run_that_fails_says_why(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ConfigError("no adapter")

    monkeypatch.setattr(simulate.TaskSequence, "_adapted", broken)
    run = train("plain", data)
    assert run.failed == "ConfigError: no adapter" and len(run.looks) == 1
    assert not analysis.finished([run])
    assert tables.sections([run], small_plan())["failed"][0]["why"] == "ConfigError: no adapter"


def test_the_rate_is_chosen_by_its_rule() -> None:
    def runs(rate: float, *ends: float) -> list[Run]:
        found = [made("plain", 0, end, 2.0, rate) for end in ends]
        for base, run in enumerate(found):
            run.base = base
        return found

    enough = [*runs(3, 0.5, 0.4), *runs(1, 0.6, 0.1), *runs(2, 0.3, 0.3)]
    assert analysis.choose_rate(enough, 0.3) == 2  # 1 erodes one base only
    assert analysis.choose_rate([*runs(1, 0.1, 0.9), *runs(2, 0.2, 0.9)], 0.3) == 2
    failed = made("plain", 0, 0.4, 2.0, 1.0)
    failed.failed = "no memory"
    assert analysis.choose_rate([failed, *runs(1, 0.9), *runs(2, 0.9)], 0.3) == 2
    with pytest.raises(JobError, match="failed at every rate: no memory"):
        analysis.choose_rate([failed], 0.3)


def test_equal_learning_is_the_line_of_plain_training() -> None:
    runs = [made("plain", 1, 0.8, 2.0), made(FRONT[0], 1, 0.2, 3.0), made("moderate", 1, 0.4, 2.5)]
    methods = analysis.finished(runs)
    shares = [analysis.learned(run) for run in runs]
    assert shares[0] == pytest.approx(2 * shares[1]) and shares[2] == pytest.approx(1.5 * shares[1])
    assert analysis.excess(runs[2], methods) == pytest.approx(0.4 - 0.5)
    assert analysis.excess(runs[0], methods) == pytest.approx(0)
    assert analysis.excess(runs[1], methods) == pytest.approx(0.2 - 0.4)  # without itself
    assert math.isnan(analysis.expected(0.9, runs[:2]))  # plain training never learned as much
    alone = analysis.finished([runs[0], runs[2]])
    assert math.isnan(analysis.excess(runs[2], alone))


def test_later_losses_are_held_to_those_of_the_own_stage_and_to_the_lowest() -> None:
    run = made("plain", 1, 0.8, 2.0)
    for look, loss in zip(run.looks[1:], (3.0, 2.0, 1.0, 2.0), strict=True):
        look.losses = dict.fromkeys(TASKS, loss)
    assert analysis.forgotten(run) == pytest.approx((-1 + 0 + 1) / 3)
    assert analysis.forgetting(run) == pytest.approx(1)


def test_rows_that_two_runs_chose_are_counted_by_stage() -> None:
    one, other = made("plain", 1, 0, 2), made("plain", 2, 0, 2)
    for stage in one.stages:
        stage.chosen = [1, 2]
    assert analysis.overlap(one, other) == 0
    other.stages[0].chosen = [2, 3]
    assert analysis.overlap(one, other) == pytest.approx(1 / 8)
    assert math.isnan(analysis.overlap(made("plain", 3, 0, 2), one))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([-0.3, -0.2, -0.25], "lower"),
        ([0.3, 0.2, 0.25], "higher"),
        ([0.01, -0.01, 0.0], "no difference"),
        ([-0.05, -0.06, -0.055], "no difference"),
        ([-0.9, 0.3, -0.1], "cannot be told"),
        ([-0.3], "cannot be told"),
        ([], "cannot be told"),
    ],
)
def test_a_difference_is_judged_by_its_interval(values: list[float], verdict: str) -> None:
    assert analysis.Difference.of(values).verdict(0.1) == verdict


def test_gradients_count_only_beyond_both_controls() -> None:
    def verdicts(
        length: float, category: float, plain: float = 0.8, loss: float = 2.0, safe: str = "01"
    ) -> dict[str, str]:
        ends = {"plain": plain, FRONT[0]: 0.8, "moderate": 0.2}
        ends |= {"random_by_length": length, "random_by_category": category}
        runs = [
            made(name, seed, end, loss if name == "moderate" else 2.0)
            for name, end in ends.items()
            for seed in (1, 2)
        ]
        for run in runs:
            if run.method == "moderate":
                run.looks[-1].safe_refused = safe
        return analysis.claims(runs, small_plan())

    assert verdicts(0.6, 0.7)["gradients"] == "lower"
    assert verdicts(0.2, 0.7)["gradients"] == "cannot be told"
    assert verdicts(0.2, 0.2)["gradients"] == "no difference"
    less = verdicts(0.6, 0.7, loss=2.5)
    assert less["moderate against random_by_length"] == "lower, but it learned less"
    assert less["gradients"] == "cannot be told"
    more = verdicts(0.6, 0.7, safe="11")["moderate against random_by_category"]
    assert more == "lower, but it refuses more safe prompts"
    nothing = verdicts(0.6, 0.7, plain=0.0)
    assert set(nothing.values()) == {"cannot be told: plain training eroded too little"}
    none = analysis.claims([], small_plan())
    assert set(none.values()) == {"cannot be told: too few runs of plain training"}


def test_the_plan_is_frozen_and_runs_what_matters_first() -> None:
    terms = Preregistration.named("continual_real")
    terms.verify()
    plan = Plan.of(terms)
    jobs = plan.jobs(2e-4)
    cells = len(plan.bases) * len(plan.confirmatory)
    assert len(jobs) == len(set(jobs))
    assert {method for method, *_ in jobs[: len(MAIN) * cells]} == set(MAIN)
    assert {(base, seed) for *_, base, seed in jobs[: len(MAIN) * cells]} == {
        (base, seed) for base in plan.bases for seed in plan.confirmatory
    }
    assert {method for method, *_ in jobs} == set(METHODS)
    assert set(analysis.claims([], plan)) == set(plan.claims)
    assert {order for _, _, order, *_ in jobs} == set(plan.orders)
    assert {base for *_, base, _ in plan.search_jobs()} == set(plan.explored)
    assert [method for method, *_ in jobs[-len(SWEPT) :]] == list(SWEPT)


@pytest.mark.parametrize(
    ("ends", "tried"),
    [
        ({0.1: 0.2, 0.2: 0.5, 0.3: 0.6}, [0.1, 0.2]),
        ({0.1: 0.0, 0.2: 0.1, 0.3: 0.2}, [0.1, 0.2, 0.3]),
    ],
)
def test_the_search_stops_at_the_rate_that_it_chooses(
    ends: dict[float, float], tried: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(rates=tuple(ends), eroded=0.5)
    session = Session(plan, None)
    known: set[float] = set()

    def run_jobs(_self: Any, _work: Any, jobs: Any) -> list[Run]:
        known.update(job[1] for job in jobs)
        runs = [made("plain", 1, ends[job[1]], 2.0, job[1]) for job in jobs]
        for run, job in zip(runs, jobs, strict=True):
            run.base = job[3]
        return runs

    monkeypatch.setattr(Session, "run_jobs", run_jobs)
    assert sorted({job[1] for job in study.search_jobs(session)}) == sorted(known) == tried


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bases": [0, 9]}, "base 0 is exploratory and confirmatory"),
        ({"orders": {"turned": list(TASKS)}}, "orders has no 'given'"),
        ({"orders": {"given": ["dolly"]}}, "does not have each of"),
        ({"reordered": ["none"]}, "no method 'none'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(change: dict[str, Any], why: str) -> None:
    terms = Preregistration.named("continual_real")
    changed = terms.model_copy(update={"study": {**(terms.study or {}), **change}})
    with pytest.raises(PreregistrationError, match=why):
        Plan.of(changed)


def test_the_page_of_runs_that_are_known() -> None:
    plan = small_plan()
    runs = [
        made(name, seed, 0.2 if name == "moderate" else 0.8, 2.0)
        for name in (*MAIN, *FRONT, "moderate_10", "random_60")
        for seed in (1, 2)
    ]
    for folder in ("page.md", "search.md"):
        own = tables.sections if folder == "page.md" else tables.search_sections
        text = fill(
            FOLDER / "continual_real" / folder,
            made="Made.",
            plan=plan,
            kind="confirmatory",
            Kind="Confirmatory",
            **own(runs, plan),
        )
        assert "{" not in text
    methods = {row["method"]: row for row in tables.sections(runs, plan)["methods"]}
    assert methods["moderate"]["attack success"] == "0.20 [0.20, 0.20]"
    assert not set(methods) & set(SWEPT)
    shares = tables.sections(runs, plan)["shares"]
    assert [(row["share"], row["method"]) for row in shares] == [
        *(("0.1", "moderate"), ("0.4", "moderate"), ("0.4", "random"), ("0.6", "random"))
    ]
    paper = tables.sections(runs, plan)["paper"]
    assert [row["table"] for row in paper] == [*map(str, range(1, 11)), "11 to 16"]
    assert "plain 0.80, random 0.80, kl –" in paper[5]["here"]
    assert methods["moderate"]["time"] == "1.00 [1.00, 1.00]"
    assert STUDY.claims(runs, plan)["moderate against plain"] == "lower"


def test_a_slow_run_of_plain_training_moves_no_other_time() -> None:
    runs = [made(name, seed, 0.5, 2.0) for name in ("plain", "kl") for seed in (1, 2, 3)]
    runs[0].stages[0].seconds = 100.0  # beside other work
    rows = {row["method"]: row["time"] for row in tables.sections(runs, small_plan())["methods"]}
    assert rows == {"plain": "1.00 [1.00, 13.25]", "kl": "1.00 [1.00, 1.00]"}


def test_runs_with_a_critical_alert_are_counted_by_behavior() -> None:
    runs = [made("plain", seed, 0.5, 2.0) for seed in (1, 2)]
    runs[0].stages[0].alerts = [(3, "refusal", "critical"), (4, "over_refusal", "warning")]
    runs[1].stages[2].alerts = [(1, "refusal", "critical"), (2, "refusal", "critical")]
    (row,) = tables.sections(runs, small_plan())["critical"]
    counts = {name: row[name] for name in row if name.startswith(("refusal", "over"))}
    assert counts == {
        "refusal: in the first task": "1",
        "refusal: in any task": "2",
        "over_refusal: in the first task": "0",
        "over_refusal: in any task": "0",
    }


def test_cosines_are_ranked_beside_attack_success() -> None:
    runs = [made("plain", seed, seed / 10, 2.0) for seed in range(5)]
    for at, run in enumerate(runs):
        run.looks[-1].cosines = {"all": (at / 10, -at / 10)}
    first, second = tables.sections(runs, small_plan())["cosine_ranks"]
    assert (first["all"], second["all"], first["runs"]) == ("1.00", "−1.00", "5")


def test_the_run_on_which_two_judges_differ_most_is_named() -> None:
    runs = [made("plain", seed, 0.5, 2.0) for seed in (1, 2)]
    runs[1].looks[-1].answered[tables.DETECTOR] = "1" * 8 + "00"
    said = tables.sections(runs, small_plan())["judges"]
    assert said.endswith("plain, given, base 1, seed 2: 0.50 by the rules, 0.80 by the detector")


def test_the_line_of_plain_training_tells_how_steep_it_is() -> None:
    runs = [made("plain", 1, 0.8, 1.0), made("plain_half_rate", 1, 0.2, 2.0, rate=0.5)]
    assert math.isclose(analysis.learned(runs[0]) - analysis.learned(runs[1]), 0.25 * 2.5 / 4)
    assert tables.sections(runs, small_plan())["steep"] == "0.04"


def test_the_figure_has_a_panel_for_each_base_and_measure() -> None:
    runs = [made("plain", 1, 0.8, 1.0), made("moderate", 1, 0.2, 2.0)]
    drawn = study.figure(runs, small_plan()).to_dict()
    titles = [
        panel["layer"][0]["encoding"]["y"]["title"]
        for row in drawn["vconcat"]
        for panel in row["hconcat"]
    ]
    assert titles == list(study.HEIGHTS)


def test_alerts_stand_beside_falls_of_unseen_probes() -> None:
    run = made("plain", 1, 0.8, 2.0)  # its score of refusal falls by 0.2 in each task
    run.looks[4].scores = run.looks[3].scores  # but not in the last one
    for stage in run.stages:
        stage.margins = {"refusal": {0: 1.0}}
    run.stages[0].alerts = [(1, "refusal", "critical")]
    run.stages[3].alerts = [(1, "refusal", "critical"), (1, "over_refusal", "critical")]
    refusal, other = tables.sections([run], small_plan())["alerts_and_falls"]
    assert refusal["fell, after a critical alert"] == "1 of 2 (50%)"
    assert refusal["fell, without one"] == "2 of 2 (100%)"
    assert other["fell, after a critical alert"] == "0 of 0"  # it was not watched
