"""What selection does to a model: strategies in a loop, and beside a guard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from riprap import AlertPolicy, Behavior, Monitor, guards
from riprap.errors import ConfigError
from riprap.integrations.hf import MonitorCallback, SelectionCallback
from riprap.record import Reader
from riprap.selection import Selector
from selection.cases import batch, reference, trained
from selection.test_loops import sgd, training
from tiny import VOCABULARY, make_llama

SILENT = AlertPolicy.parse({"name": "silent", "detectors": [{"kind": "forecast"}]}, "here")
STEPS, ROWS = 30, 16


def questions(rows: int, first: int, seed: int) -> Tensor:
    """`first`, then two words of which the second is the question."""
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, len(VOCABULARY), (rows, 3), generator=made)
    ids[:, 0] = first
    return ids


def rows(ids: Tensor, answers: Tensor) -> dict[str, Tensor]:
    """Only the answer is learned."""
    both = torch.cat([ids, answers[:, None]], 1)
    labels = torch.full_like(both, -100)
    labels[:, -1] = answers
    return {"input_ids": both, "labels": labels}


def usual(ids: Tensor) -> Tensor:
    """What the model says at its start."""
    with torch.no_grad():
        found: Tensor = make_llama().eval()(ids).logits[:, -1].argmax(-1)
    return found


def behavior() -> Behavior:
    """What the model says at its start to questions of kind 1."""
    ids = questions(12, 1, seed=100)
    return Behavior.next_token("kept", ids, usual(ids))


def mixed(seed: int) -> dict[str, Tensor]:
    """One half answers with one word whatever is asked, which erodes; the other as ever."""
    half = ROWS // 2
    ids = questions(ROWS, 1, seed)
    return rows(ids, torch.cat([torch.full((half,), 9), usual(ids[half:])]))


def margin(model: Any, kept: Behavior) -> float:
    with torch.no_grad():
        return float(kept.margins(model.eval(), kept.probes).mean())


def after(strategy: str, **options: Any) -> tuple[float, Selector]:
    model, kept = make_llama().train(), behavior()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if strategy == "least_harm":
        options |= {"behaviors": [kept], "probe_every": 5}
    selector = Selector(strategy, 0.25, **options)
    with selector.attach(model, optimizer):
        for step in range(STEPS):
            model(**mixed(step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return margin(model, kept), selector


def test_least_harm_keeps_more_of_a_behavior_at_equal_updates() -> None:
    kept, selector = after("least_harm")
    others = [after(name)[0] for name in ("random", "moderate")]
    first = margin(make_llama(), behavior())
    assert first - max(others) > 0.2 * first  # there is something to keep
    assert kept > max(others) + 0.2 * (first - max(others))
    taken = [row for one in selector.history for row in one.rows]
    assert np.mean(np.array(taken) >= ROWS // 2) > 0.75


def validation_loss(model: Any) -> Tensor:
    loss: Tensor = model(**rows(questions(32, 2, seed=999), torch.full((32,), 9))).loss
    return loss


def noisy(seed: int) -> dict[str, Tensor]:
    """One half answers as the validation rows do, the other half anything."""
    made = torch.Generator().manual_seed(seed)
    answers = torch.randint(6, len(VOCABULARY), (ROWS,), generator=made)
    answers[: ROWS // 2] = 9
    return rows(questions(ROWS, 2, seed), answers)


def towards_validation(strategy: str, kind: Any, rate: float) -> float:
    model = make_llama().train()
    optimizer = kind(model.parameters(), lr=rate)
    for start in range(0, 20, 5):
        found = torch.autograd.grad(validation_loss(model), [*model.parameters()])
        directions = {"validation": list(found)} if strategy == "taylor" else {}
        with Selector(strategy, 0.25, directions=directions).attach(model, optimizer):
            for step in range(start, start + 5):
                model(**noisy(step)).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    with torch.no_grad():
        return float(validation_loss(model))


@pytest.mark.parametrize(("kind", "rate"), [(torch.optim.SGD, 0.02), (torch.optim.AdamW, 1e-3)])
def test_taylor_lowers_a_validation_loss_faster_than_chance(kind: Any, rate: float) -> None:
    first = float(validation_loss(make_llama()).detach())
    chosen, chance = (towards_validation(name, kind, rate) for name in ("taylor", "random"))
    assert first - chosen > 1.2 * (first - chance)
    assert chosen < first


def test_risk_takes_the_safe_rows_and_is_led_away_from_danger() -> None:
    """Directions by what a step on dangerous and on safe rows would do."""
    ids = questions(32, 1, seed=50)
    danger, safe = rows(ids, torch.full((32,), 9)), rows(ids, usual(ids))
    ends, shares = [], []
    for strategy in ("risk", "random"):
        model = make_llama().train()
        found = {}
        for name, given in (("danger", danger), ("safety", safe)):
            loss = model(**given).loss
            found[name] = [-g for g in torch.autograd.grad(loss, [*model.parameters()])]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        selector = Selector(strategy, 0.25, directions=found if strategy == "risk" else {})
        with selector.attach(model, optimizer):
            for step in range(20):
                model(**mixed(step)).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        taken = np.array([row for one in selector.history for row in one.rows])
        shares.append(np.mean(taken >= ROWS // 2))
        with torch.no_grad():
            ends.append(float(model(**danger).loss))
    assert shares[0] > 0.9 > 0.7 > shares[1]
    assert ends[0] > ends[1]  # less of the danger was learned


@pytest.mark.parametrize("steps", [0, 3])
def test_inner_products_of_updates_are_adams(steps: int) -> None:
    """Over two micro-batches under Adam, against torch.func and the optimizer's state."""
    model = training("lora")
    parameters = [*trained(model).values()]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    for seed in range(steps):
        model(**batch(seed=seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    halves = [batch(3, seed=7), batch(2, seed=8)]
    each = torch.cat([reference(model, half) for half in halves])
    parts = []
    for p in parameters:
        if steps:
            squares = optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**steps)
            parts.append((-0.01 / (squares.sqrt() + 1e-8)).flatten())
        else:
            parts.append(torch.full((p.numel(),), -0.01))
    scales = torch.cat(parts).double()
    seen: list[Any] = []
    selector = Selector("taylor", 0.4)
    decide = selector.choose_and_record
    selector.choose_and_record = lambda scores, ids: seen.append(scores) or decide(scores, ids)  # type: ignore[method-assign, func-returns-value]
    with selector.attach(model, optimizer, accumulate=2):
        for half in halves:
            (model(**half).loss / 2).backward()
    moved = each * scales
    for found, wanted in (
        (seen[0].gram, each @ each.T),
        (seen[0].update_gram, moved @ moved.T),
        (seen[0].directional["batch"], moved @ each.mean(0)),
    ):
        assert np.allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_micro_batches_that_reach_different_layers_are_compared() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.up(inputs) if inputs.mean() > 0 else self.down(inputs)

    torch.manual_seed(0)
    model = Either()
    selector = Selector("taylor", 0.5)
    with selector.attach(model, sgd(model), 2, lambda out, _: out.logsumexp(1)):
        for inputs in (torch.rand(4, 4), -torch.rand(4, 4)):
            (model(inputs).logsumexp(1).mean() / 2).backward()
    assert len(selector.history[0].rows) == 4


@pytest.mark.parametrize("guarded", [False, True])
def test_agem_corrects_the_selected_gradient(guarded: bool) -> None:
    """Rows that erode are taken: without the guard the step goes against what is protected."""
    model, kept = make_llama().train(), behavior()
    parameters = [*model.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    protected = torch.autograd.grad(-kept.margins(model, kept.probes).mean(), parameters)
    before = [p.detach().clone() for p in parameters]
    monitor, selector = Monitor([kept], policy=SILENT, probe_every=1), Selector("high", 0.25)
    guard = guards.AGEM([kept]) if guarded else None
    ids = questions(12, 1, seed=100)  # the probes
    with torch.no_grad():  # what the model is least likely to say
        given = rows(ids, model.eval()(ids).logits[:, -1].argmin(-1))
    with selector.attach(model, optimizer), monitor.watch(model, optimizer, guard=guard):
        model.train()(**given).loss.backward()
        optimizer.step()
    moved = [p.detach() - old for p, old in zip(parameters, before, strict=True)]
    along = float(sum((g * d).sum() for g, d in zip(protected, moved, strict=True)))
    length = float(sum(g.square().sum() for g in protected) ** 0.5) * float(
        sum(d.square().sum() for d in moved) ** 0.5
    )
    assert length > 0
    assert len(selector.history[0].rows) == 3
    if guarded:
        assert along <= 1e-4 * length
        assert any(action.applied for action in monitor.actions)
    else:
        assert along > 0.05 * length


def test_what_is_taken_goes_into_the_monitors_record(tmp_path: Path) -> None:
    model, kept = make_llama(), behavior()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = Monitor([kept], policy=SILENT, probe_every=5, run_dir=tmp_path)
    selector = Selector(
        "moderate", 0.25, log=lambda **taken: monitor.log_event("selection", **taken)
    )
    with monitor.watch(model, optimizer), selector.attach(model.train(), optimizer):
        for seed in range(3):
            model(**mixed(seed)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    events = [event for event in Reader(tmp_path).events() if event["kind"] == "selection"]
    assert [event["facts"]["rows"] for event in events] == [one.rows for one in selector.history]
    assert [event["step"] for event in events] == [0, 1, 2]  # before each step is taken
    assert len(events[0]["facts"]["scores"]["norm"]) == len(selector.history[0].rows)
    assert Reader(tmp_path).meta()["ended"]
    with pytest.raises(ConfigError, match="reserved for the record"):
        monitor.log_event("ended")


class Mixed(torch.utils.data.Dataset):
    def __init__(self) -> None:
        parts = [mixed(seed) for seed in range(STEPS)]
        self.rows = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def __len__(self) -> int:
        return STEPS * ROWS

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        return {key: value[at] for key, value in self.rows.items()}


@pytest.mark.filterwarnings("ignore")
def test_monitor_guard_and_selector_under_trainer(tmp_path: Path) -> None:
    """The guard keeps the margin, of the same number of rows; the monitor sees what happened."""
    ends, first = {}, margin(make_llama(), behavior())
    for guarded in (False, True):
        kept, selector = behavior(), Selector("moderate", 0.25)
        monitor = Monitor([kept], policy=SILENT, probe_every=5)
        guard = guards.AGEM([kept]) if guarded else None
        arguments = TrainingArguments(
            str(tmp_path / str(guarded)),
            per_device_train_batch_size=ROWS // 2,
            gradient_accumulation_steps=2,
            learning_rate=0.01,
            lr_scheduler_type="constant",
            optim="sgd",
            num_train_epochs=1,
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
            seed=3,
        )
        callbacks = [MonitorCallback(monitor, guard=guard), SelectionCallback(selector)]
        made = Trainer(make_llama(), arguments, train_dataset=Mixed(), callbacks=callbacks)
        made.train()
        assert [(len(one.rows), one.batch_size) for one in selector.history] == [(4, ROWS)] * STEPS
        ends[guarded] = margin(made.model, kept)
        measured = monitor.behavior_histories["kept"].margins[-1].mean()
        assert measured == pytest.approx(ends[guarded], rel=1e-3, abs=1e-3)
    assert any(action.applied for action in monitor.actions)
    assert ends[True] > ends[False] + 0.2 * (first - ends[False])
