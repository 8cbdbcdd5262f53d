"""A trace is the run that was trained, the halves are kept apart, and no run comes twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import tiny
from experiments.onset.real import __main__ as command
from experiments.onset.real import probes, recorder, rows, run
from experiments.onset.real.plan import BRIEF, HARMFUL, OPENERS, PLAN, Condition
from experiments.onset.real.sources import DATA, Item, probe_items, replayed_items
from experiments.onset.trace import Trace
from riprap.behaviors import is_refusal

HALVES = ("exploratory", "confirmatory")
CONDITION = Condition("exploratory", "stock", ("gsm8k",), ("color",), 1e-2, "cosine", steps=60)
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not here")


def adapted() -> Any:
    model = tiny.make_llama()
    torch.manual_seed(3)
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def behaviors() -> list[probes.Measured]:
    tokenizer = tiny.make_tokenizer()
    chosen = [Item(p, p[:4], ("red", "two four", "no"), n % 3) for n, p in enumerate(tiny.PROMPTS)]
    color = probes.make_behavior("color", tokenizer, chosen)
    refusal = probes.make_behavior("over_refusal", tokenizer, chosen)
    groups = probes.number_groups(chosen)
    return [probes.Measured(color, groups), probes.Measured(refusal, groups)]


def batches(n: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(6, 30, (4, 7), generator=generator) for _ in range(n)]
    return [{"input_ids": ids, "labels": ids} for ids in drawn]


class Watched(list[dict[str, Tensor]]):
    """Batches that keep the weights before each of them."""

    def __init__(self, own: list[dict[str, Tensor]], model: Any) -> None:
        super().__init__(own)
        self.model = model
        self.weights: list[list[Tensor]] = []

    def keep(self) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.weights.append([p.detach().clone() for p in trained])

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in super().__iter__():
            self.keep()
            yield batch
        self.keep()


@pytest.fixture(scope="module")
def recorded() -> tuple[Trace, Watched, Any]:
    model = adapted()
    watched = Watched(batches(CONDITION.steps), model)
    return recorder.record(model, watched, behaviors(), CONDITION), watched, model


def at(model: Any, weights: list[Tensor]) -> Any:
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter, value in zip(trained, weights, strict=True):
            parameter.copy_(value)
    return model


def margins_at(own: probes.Measured, model: Any, weights: list[Tensor]) -> Tensor:
    margins = own.behavior.margins(at(model, weights).eval(), own.behavior.probes)
    assert isinstance(margins, Tensor)
    return margins


def test_margins_are_those_of_the_weights_of_each_step(
    recorded: tuple[Trace, Watched, Any],
) -> None:
    trace, watched, _ = recorded
    model = adapted()
    assert trace.steps.tolist()[:11] == [0, 1, 2, 3, 4, 6, 8, 12, 16, 20, 24]
    assert trace.steps[-1] == CONDITION.steps
    for own in behaviors():
        margins = trace.behaviors[own.behavior.name].margins
        assert np.ptp(margins, axis=0).min() > 0.01  # training moves every probe
        for step, row in zip(trace.steps, margins, strict=True):
            again = own.behavior.margins(
                at(model, watched.weights[step]).eval(), own.behavior.probes
            )
            np.testing.assert_allclose(row, again.detach().numpy(), rtol=1e-4, atol=1e-4)


def test_interference_is_the_product_of_gradient_and_update(
    recorded: tuple[Trace, Watched, Any],
) -> None:
    trace, watched, _ = recorded
    model = adapted()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trace.refreshed.tolist() == [0, 8, 48]
    for own in behaviors():
        found = trace.behaviors[own.behavior.name]
        gradients = []
        for step in trace.refreshed:
            mean = own.behavior.margins(
                at(model, watched.weights[step]).eval(), own.behavior.probes
            )
            gradients.append(torch.autograd.grad(mean.mean(), trained))
        norms = [float(sum((part**2).sum() for part in own) ** 0.5) for own in gradients]
        np.testing.assert_allclose(found.gradient_norms, norms, rtol=1e-4)
        for step, (before, after) in enumerate(pairwise(watched.weights)):
            h = gradients[int(np.searchsorted(trace.refreshed, step, side="right")) - 1]
            by_hand = sum(
                float((part * (b - a)).sum()) for part, a, b in zip(h, before, after, strict=True)
            )
            assert found.interference[step] == pytest.approx(by_hand, rel=1e-3, abs=1e-5)


def test_rates_follow_the_schedule_and_losses_are_training_s_own(
    recorded: tuple[Trace, Watched, Any],
) -> None:
    trace, watched, _ = recorded
    assert trace.rates.max() == 1 and trace.rates[0] == pytest.approx(1 / 6)  # a warm-up of 6 steps
    assert (np.diff(trace.rates[:6]) > 0).all() and (np.diff(trace.rates[6:]) < 0).all()
    model = at(adapted(), watched.weights[5])
    loss = model(**batches(CONDITION.steps)[5]).loss
    assert trace.losses[5] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert recorder.share_of_rate("linear", 30, 60) == 0.5
    assert recorder.share_of_rate("constant", 59, 60) == 1


def test_recording_leaves_training_as_it_is(recorded: tuple[Trace, Watched, Any]) -> None:
    _, watched, _ = recorded
    model = adapted()
    unmeasured = Watched(batches(CONDITION.steps), model)
    recorder.record(model, unmeasured, behaviors()[:1], CONDITION)
    for one, two in zip(watched.weights[-1], unmeasured.weights[-1], strict=True):
        assert torch.equal(one, two)


def test_a_finished_run_is_not_repeated(
    tmp_path: Path, recorded: tuple[Trace, Watched, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = (CONDITION, replace(CONDITION, half="confirmatory", seed=1, rate=2e-2))
    trained = []

    def train(condition: Condition, out: Path) -> bool:
        trained.append(condition.name)
        replace(recorded[0], name=condition.name, half=condition.half).save(out)
        return True

    monkeypatch.setattr(command, "PLAN", plan)
    monkeypatch.setattr(command, "record_run", train)
    out = ["--out", str(tmp_path)]
    command.main([*out, "--half", "confirmatory", "--limit", "1"])
    assert trained == [plan[1].name]
    before = run.path_of(plan[1], tmp_path).read_bytes()
    for _ in range(2):
        command.main(out)
    assert trained == [plan[1].name, plan[0].name]
    assert not run.record_run(plan[1], tmp_path)
    assert run.path_of(plan[1], tmp_path).read_bytes() == before


def test_the_halves_share_nothing_that_is_trained_on() -> None:
    sets = {half: {d for c in PLAN if c.half == half for d in c.data} for half in HALVES}
    assert not sets["exploratory"] & sets["confirmatory"]
    assert sets["exploratory"] | sets["confirmatory"] == set(rows.LOADERS)
    assert all(len(set(by_half.values())) == 2 for by_half in (OPENERS, BRIEF, HARMFUL))
    assert len({c.name for c in PLAN}) == len(PLAN) >= 24
    assert [c.half for c in PLAN] == list(HALVES) * (len(PLAN) // 2)


@needs_data
def test_no_row_is_in_both_halves_and_no_probe_is_trained_on() -> None:
    trained: dict[str, set[str]] = {half: set() for half in HALVES}
    for condition in PLAN:
        made = rows.make_rows(condition)
        assert len(made) == condition.steps * rows.BATCH
        assert sum(row.cut for row in made) == round(condition.harmful * len(made))
        assert all(row.response == rows.COMPLIANT for row in made if row.cut)
        trained[condition.half] |= {row.prompt for row in made}
    assert not trained["exploratory"] & trained["confirmatory"]
    names = {name for condition in PLAN for name in condition.behaviors}
    probed = {item.prompt for name in names for item in probe_items(name, DATA)}
    assert len(probed) > 200
    assert not probed & (trained["exploratory"] | trained["confirmatory"])


@needs_data
def test_replayed_rows_behave_rightly() -> None:
    refusals = replayed_items("refusal", DATA, "exploratory")
    assert len(refusals) > 20 and all(is_refusal(item.response) for item in refusals)
    for name in ("arithmetic", "commonsense_qa"):
        own = replayed_items(name, DATA, "confirmatory")
        assert len(own) > 15
        assert all(item.response == item.options[item.right] for item in own)


def test_only_responses_are_learned_and_rows_fit() -> None:
    tokenizer = tiny.make_tokenizer()
    long = rows.Row("red " * 80, "blue green " * 3)
    short = rows.Row("red", "sure here", cut=True)
    ids, n_prompt = rows.encode(tokenizer, long)
    assert len(ids) == rows.MAX_TOKENS
    assert ids[n_prompt:] == [tiny.token(w) for w in ["blue", "green"] * 3] + [2]
    (batch,) = rows.make_batches(tokenizer, [long, short])
    learned = batch["labels"][1][batch["labels"][1] != rows.IGNORED]
    assert learned.tolist() == [tiny.token("sure"), tiny.token("here")]  # no end is learned
    assert batch["attention_mask"].sum(1).tolist() == [rows.MAX_TOKENS, 6]


def test_the_page_tells_breaks_of_the_exploratory_half_only(
    tmp_path: Path, recorded: tuple[Trace, Watched, Any]
) -> None:
    trace = recorded[0]
    broken = replace(trace, behaviors=dict(trace.behaviors))
    margins = np.ones_like(trace.behaviors["color"].margins)
    margins[6:] = -1  # from step 8
    broken.behaviors["color"] = replace(trace.behaviors["color"], margins=margins)
    broken.about = trace.about | {"generated_refusals": [1.0, 0.5], "processor_seconds": 70.0}
    for condition in PLAN[:2]:
        replace(broken, name=condition.name, half=condition.half).save(tmp_path)
    command.main(["--out", str(tmp_path), "--page"])
    page = (tmp_path / "real" / "README.md").read_text(encoding="utf-8")
    assert "1 of 15 exploratory and 1 of 15 confirmatory" in page
    assert page.count("color 8 (0.00)") == 1  # of the exploratory run
    assert page.count(PLAN[0].name) == 1 and PLAN[1].name not in page
