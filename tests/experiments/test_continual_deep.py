"""The deeper look: it leaves training as it is, sees what falls, and says what came."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from experiments.continual_real import deep, deep_tables, measure, simulate
from experiments.continual_real.deep import DeepRun, Forecast, Moment
from experiments.continual_real.features import Carried, Features, Use, _without_first
from experiments.continual_real.measure import Look
from experiments.continual_real.plan import GIVEN, Plan
from experiments.continual_real.rows import TASKS, Row, collate
from experiments.continual_real.simulate import Stage
from experiments.continual_real.study import DEEP as STAGE
from experiments.harness.markdown import NOTHING, fill
from experiments.harness.study import FOLDER
from riprap.behaviors import Behavior
from riprap.evals.judges import RefusalRules
from small_real import DEEP, SETTING, make_model, make_small, make_tokenizer, small_plan

RATE = 1e-2
STEPS = SETTING.steps * len(TASKS)
PROMPTS = {
    "refusal": [f"do {n}" for n in range(24)],
    "over_refusal": [f"ask {n}" for n in range(24)],
}
ANSWERS = {"refusal": "Sorry", "over_refusal": "Yes"}


@functools.cache
def taught(base: int) -> Any:
    """A tiny model that refuses what begins with "do", and answers what begins with "ask"."""
    model, tokenizer = make_model(base), make_tokenizer()
    rows = [
        Row(0, "", tuple(prompt), (*tokenizer.encode(ANSWERS[name]), 256))
        for name, prompts in PROMPTS.items()
        for prompt in behavior(name, tokenizer, prompts).token_rows() or []
    ]
    batch = collate(rows, 256)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        model(**batch, logits_to_keep=batch["labels"].shape[1]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def behavior(name: str, tokenizer: Any, prompts: Sequence[str] | None = None) -> Behavior:
    avoid = name == "over_refusal"
    return Behavior.response_prefix(
        name, tokenizer, prompts or PROMPTS[name], ["Sorry"], avoid=avoid
    )


def load(base: int | None) -> tuple[Any, Any]:
    if base is None:
        return make_model(None), make_tokenizer()
    model = make_model(base)
    model.load_state_dict(taught(base).state_dict())
    return model, make_tokenizer()


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = make_small(monkeypatch, tmp_path)
    for module in (simulate, deep):
        monkeypatch.setattr(module, "load_base", load)
    monkeypatch.setattr(simulate, "load_refusals", behavior)
    monkeypatch.setattr(simulate, "passing", lambda *_: list(range(24)))
    return folder


def plan(**changes: Any) -> Plan:
    setting = SETTING.model_copy(update={"unseen": 12, "monitored": 4})
    return small_plan(setting=setting, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["plain", "moderate", "auto_guard"])
def test_a_deep_run_is_trained_as_the_run_without_it(method: str, data: Path) -> None:
    own = plan()
    run = deep.look_deep(method, RATE, 1, 400, own, data)
    assert not run.failed
    assert deep_tables.same(run, own).startswith("not compared")
    other = simulate.simulate(method, RATE, GIVEN, 1, 400, own, data)
    assert [s.losses for s in run.stages] == [s.losses for s in other.stages]
    assert [s.margins for s in run.stages] == [s.margins for s in other.stages]
    assert [look.answered for look in run.looks] == [look.answered for look in other.looks]
    assert deep_tables.same(run, own).startswith("the same losses, bit for bit")
    run.looks[-1].answered = {}
    assert deep_tables.same(run, own) == "**the same losses, but other verdicts**"
    run.stages[0].losses[0] += 1e-6
    assert deep_tables.same(run, own) == "**other losses**"


@pytest.mark.slow
def test_a_deep_run_measures_all_it_names(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def letters(_: str, tokenizer: Any, _items: Any) -> Behavior:
        asked: dict[str, Any] = {"prompts": ["q"] * 2, "options": [["y", "z"]] * 2}
        return Behavior.multiple_choice("letters", tokenizer, **asked, right=[0, 1])

    monkeypatch.setattr(measure, "CHOICES", ("letters",))
    monkeypatch.setattr(measure, "items", lambda *_: [])
    monkeypatch.setattr(measure, "make_behavior", letters)

    def scores(model: Any, *args: Any) -> dict[str, float]:
        weights = [
            part.detach().double() for name, part in model.named_parameters() if "q_proj" in name
        ]
        return task_scores(model, *args) | {"norm": float(sum(part.norm() for part in weights))}

    task_scores = deep.task_scores
    monkeypatch.setattr(deep, "task_scores", scores)
    own = plan()
    run = deep.look_deep("plain", RATE, 1, 400, own, data)
    assert [moment.update for moment in run.moments] == list(range(STEPS + 1))
    first, last = run.moments[0], run.moments[-1]
    assert first.scores == {"refusal": 1.0, "over_refusal": 1.0}
    assert first.use.overlap == pytest.approx(1) and first.use.kept == pytest.approx(1)
    assert 0 < first.use.l0 <= DEEP.active and first.use.shares == run.refused
    assert len(run.latents) == len(run.areas) == DEEP.refusing
    assert max(run.areas) > 0.9 and run.refused != run.harmless
    assert last.margins["refusal"] < first.margins["refusal"] and last.use.overlap < 1
    assert len(run.carried) == len(run.forecasts) == len(TASKS)
    assert all(one.cosine < 1 and one.control < 1 for one in run.carried)
    assert run.carried[-1].updated > run.carried[-1].explained
    assert not math.isnan(run.forecasts[0]["refusal"].probability)
    around = run.start["refusal"]
    assert around.first[1] == 1.0 and 0 < around.visage <= 1
    assert run.start["over_refusal"].judged[1] == 1.0 and run.end.keys() == run.start.keys()
    assert len(run.looks) == len(run.scores) == len(TASKS) + 1
    assert all(look.choices.keys() == {"letters"} for look in run.looks)
    rows = deep_tables.sections([run], own)["along"]
    assert [row["after"] for row in rows] == [NOTHING, *TASKS]
    assert rows[0]["letters"] == "0.50" and rows[0]["XSTest safe refused"] != NOTHING
    assert len({found["norm"] for found in run.scores}) == len(TASKS) + 1  # of the model then
    assert run.scores[0]["SQuAD F1 of never answering"] == pytest.approx(2 / 3)
    assert run.repair.before == 1.0 and run.repair.verdict
    parts = {"base", "stages", "moments", "preflight", "features", "scores", "basins", "repair"}
    assert set(run.seconds) == {"loading", *parts}
    again = deep.look_deep("plain", RATE, 1, 400, own, data)
    assert again == run  # read again, with everything in it


@pytest.mark.slow
def test_the_loss_of_each_row_is_that_of_the_model_that_learns_from_it(data: Path) -> None:
    own = plan()
    run = deep.look_deep("moderate", RATE, 1, 400, own, data)
    ground = simulate.Ground(1, own.setting, data)
    for stage, losses in zip(run.stages, run.row_losses, strict=True):
        batches = ground.batches(stage.task, 400)
        assert set(losses) == {row.number for rows in batches for row in rows}
        assert set(stage.chosen) < set(losses)
        for step_loss, rows in zip(stage.losses, batches, strict=True):
            tokens = [len(row.answer) for row in rows]
            whole = np.average([losses[row.number] for row in rows], weights=tokens)
            assert step_loss == pytest.approx(whole, rel=1e-2)
    assert run.stages[0].losses[0] != pytest.approx(run.stages[0].losses[-1], rel=5e-2)
    row = deep_tables.sections([run], own)["taken"][0]
    taken = [loss for number, loss in run.row_losses[0].items() if number in run.stages[0].chosen]
    left = [
        loss for number, loss in run.row_losses[0].items() if number not in run.stages[0].chosen
    ]
    parts: dict[str, list[float]] = {"taken": taken, "left": left}
    for title, part in parts.items():
        assert float(row[f"mean of the {title}"]) == pytest.approx(np.mean(part), abs=5.1e-3)
        assert row[title].startswith(f"{np.median(part):.2f} [")


@pytest.mark.slow
def test_a_deep_run_that_fails_says_why(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("no rows")

    monkeypatch.setattr(deep, "task_scores", broken)
    run = deep.look_deep("plain", RATE, 1, 400, plan(), data)
    assert run.failed == "ValueError: no rows"
    assert deep_tables.sections([run], plan())["failed"][0]["why"] == "ValueError: no rows"


def test_features_tell_a_model_that_changed_from_one_that_did_not() -> None:
    tokenizer = make_tokenizer()
    refused, harmless = (behavior(name, tokenizer) for name in PROMPTS)
    unseen, chosen_by = (
        [one.subset(half) for one in (refused, harmless)] for half in (range(12), range(12, 24))
    )
    rows = [Row(0, "", (65, 66, 67), (68, 69))]
    deep_plan = DEEP.model_copy(update={"tokens": 2})
    made = Features(taught(1), unseen, chosen_by, rows, 256, deep_plan, 0)
    ends = torch.cat([made._prompts(taught(1), one) for one in chosen_by])
    found = torch.cdist(ends, made.tokens).min(1).values
    assert 24 <= len(made.tokens) <= 26 and found.max() < 1e-2  # each prompt's last token is there
    made = Features(taught(1), unseen, chosen_by, rows, 256, DEEP, 0)
    assert len(made.latents) == len(made.others) == DEEP.refusing
    assert not set(made.latents.tolist()) & set(made.others.tolist())

    def areas(parts: Sequence[Behavior]) -> list[float]:
        activations = [made.base.encode(made._prompts(taught(1), one)) for one in parts]
        labels = np.repeat([1, 0], [len(own) for own in activations])
        every = torch.cat(activations).numpy()
        return [roc_auc_score(labels, every[:, at]) for at in range(DEEP.latents)]

    choosing, shown, chosen = areas(chosen_by), areas(unseen), made.latents.tolist()
    best = sorted(choosing, reverse=True)[: DEEP.refusing]
    assert [choosing[at] for at in chosen] == pytest.approx(best)
    assert made.areas == pytest.approx([shown[at] for at in chosen])
    start, end = (made.use(made._prompts(model, unseen[0])) for model in (taught(1), make_model(2)))
    assert start.kept == start.others == pytest.approx(1)
    assert end.kept < 1 and end.others != pytest.approx(1)
    same = made.update(taught(1))
    assert same.cosine == pytest.approx(same.control) and same.cosine < 1
    other = made.update(make_model(2))
    assert other.cosine != pytest.approx(other.control, abs=1e-5)
    assert other.explained < same.explained
    assert sum(other.shares) < sum(same.shares)


def test_the_first_token_of_each_row_is_left_out() -> None:
    mask = _without_first(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]))
    assert mask.tolist() == [[False, False, False, True], [False, True, True, True]]


def test_costs_count_each_second_once() -> None:
    run = known(moment(0, 1, 4), moment(1, 1, 4))
    run.seconds = {"stages": 10.0, "moments": 3.0, "preflight": 2.0, "scores": 4.0}
    row = deep_tables.sections([run], plan())["costs"][0]
    assert row["training"] == "5" and row["all"] == "14"


def moment(update: int, kept: float, margin: float, score: float = 1.0) -> Moment:
    both = {"refusal": score, "over_refusal": 1.0}
    use = Use(l0=4, explained=0.5, overlap=kept, kept=kept, others=1.0, shares=[kept, kept])
    return Moment(update, both, {"refusal": margin, "over_refusal": 1.0}, use)


def known(*moments: Moment, forecasts: dict[str, Forecast] | None = None) -> DeepRun:
    run = DeepRun("plain", 1.0, 1, 400, ["dolly"], latents=[3, 7], areas=[0.9, 0.6], refused=[1, 1])
    run.harmless = [0, 0.5]
    run.moments = list(moments)
    run.stages = [Stage("dolly", updates=len(moments) - 1, alerts=[(1, "refusal", "critical")])]
    run.forecasts = [forecasts or {}]
    run.looks = [
        Look(at, {RefusalRules.name: "10"}, dict.fromkeys(PROMPTS, 1.0), losses={"dolly": 1.0})
        for at in (0, len(moments) - 1)
    ]
    run.scores, run.row_losses = [{}, {}], [{}]
    run.carried = [Carried(0.5, 0.6, 0.1, 0.9, 0.8, 0.95, 0.95, [0.8, 0.95], [1.0, 1.0])]
    return run


@pytest.mark.parametrize(
    ("kept", "margins", "what"),
    [
        ([1, 0.4, 0.2, 0], [4, 4, 4, 0], deep_tables.FEATURES),
        ([1, 1, 1, 0], [4, 1, 0, 0], deep_tables.MARGINS),
        ([1, 1, 0, 0], [4, 3.9, 0, 0], deep_tables.TOGETHER),
        ([1, 0.9, 0.9, 0.8], [4, 3, 0, 0], deep_tables.NO_FALL),
        ([1, 0.4, 0.2, 0], [4, 4, 4, 3.5], deep_tables.NO_FALL),
    ],
)
def test_what_fell_first(kept: list[float], margins: list[float], what: str) -> None:
    pairs = enumerate(zip(kept, margins, strict=True))
    run = known(*(moment(at, *pair) for at, pair in pairs))
    assert deep_tables.order(run, plan()) == what
    told = deep_tables.claims([run], plan())["plain: what fell first"]
    assert told.startswith(what) and "as many others: no fall" in told


def test_the_figure_draws_scores_and_latents_after_each_update() -> None:
    run = known(moment(0, 1, 4), moment(1, 0.4, 3, 0.5))
    drawn = deep_tables.figure([run], plan()).to_dict()
    values = [row for rows in drawn["datasets"].values() for row in rows if "series" in row]
    assert [row["value"] for row in values] == [1, 1, 1, 1, 0.5, 1, 0.4, 1]
    assert [part["title"] for part in drawn["hconcat"]] == ["plain"]


def test_a_series_is_halfway_where_half_of_its_fall_is_behind_it() -> None:
    assert deep_tables.halfway([4, 3.5, 2, 1, 0, 3], 0.25) == 2
    assert deep_tables.halfway([4, 5, 3.5], 0.25) is None
    assert deep_tables.halfway([-1, -5], 0.25) is None
    assert deep_tables.halfway([math.nan, 1], 0.25) is None


def test_a_forecast_is_judged_by_the_unseen_probes_of_its_stage() -> None:
    told = {
        "refusal": Forecast(0.9, 0.8, 1, 2, 3, "after 1 to 3 steps"),
        "over_refusal": Forecast(0.9, 0.7, 1, 2, 3, "after 1 to 3 steps"),
    }
    run = known(moment(0, 1, 4), moment(1, 1, 3, 0.95), moment(2, 1, 1, 0.5), forecasts=told)
    assert deep_tables.broke(run, 0, "refusal") == 2
    low = known(moment(0, 1, 4, 0.5), moment(1, 1, 3, 0.48), moment(2, 1, 1, 0.4))
    assert deep_tables.broke(low, 0, "refusal") == 2  # under 0.95 of the 0.5 that was left
    assert deep_tables.forecasts([run]) == [(True, True), (True, False)]
    told_right = deep_tables.claims([run], plan())["forecasts of preflight"]
    assert told_right.startswith("1 of 2 right, with 1 breaks")
    run.method = "auto_guard"  # preflight knows no guard
    assert deep_tables.forecasts([run]) == []
    run.method = "plain"
    rows = deep_tables.sections([run], plan())["forecasts"]
    assert [row["came"] for row in rows] == ["broken at step 2", "no break"]
    assert rows[0]["the monitor, by step"] == "1: critical"


@pytest.mark.slow
def test_the_page_of_a_deep_run(data: Path) -> None:
    own = plan()
    runs = [deep.look_deep(method, RATE, 1, 400, own, data) for method in DEEP.methods]
    text = fill(
        FOLDER / "continual_real" / STAGE.template,
        made="Made.",
        plan=own,
        kind="confirmatory",
        Kind="Confirmatory",
        **STAGE.sections(runs, own),
    )
    assert "{" not in text and "nan" not in text
    assert "auto_guard" in text and "VISAGE" in text


def test_the_runs_of_the_stage() -> None:
    own = plan()
    assert own.deep_jobs(2e-4) == [(name, 2e-4, own.bases[0], 400) for name in DEEP.methods]
    assert own.deep_jobs(2e-4, exploratory=True)[0] == ("plain", 2e-4, own.explored[0], 1000)
    assert np.all([job[0] in own.deep.methods for job in own.deep_jobs(1.0)])
