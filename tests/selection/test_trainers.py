"""A selector under Trainer and SFTTrainer, and beside a monitor and its guard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from riprap import AlertPolicy, Behavior, Monitor, guards
from riprap.integrations.hf import MonitorCallback, SelectionCallback
from riprap.selection import Selector
from selection.cases import batch, trained
from selection.test_loops import close, flat, sgd, training
from tiny import make_llama, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = batch(22, seed=4)
SILENT = AlertPolicy.parse({"name": "silent", "detectors": [{"kind": "forecast"}]}, "here")
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "learning_rate": 0.05,
    "optim": "sgd",
    "use_cpu": True,
    "save_strategy": "no",
    "disable_tqdm": True,
    "report_to": "none",
    "logging_steps": 1,
    "num_train_epochs": 1,
    "max_grad_norm": 0.5,
    "seed": 3,
}


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 22

    def __getitem__(self, at: int) -> dict:
        return {key: value[at] for key, value in ROWS.items()} | {"id": at + 100}


class Witness(TrainerCallback):
    """Gradients as the optimizer is given them."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_pre_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
        grads = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        self.norms.append(float(torch.cat([g.flatten() for g in grads]).norm()))


def trainer(folder: Path, callbacks: list[Any], accumulate: int = 1, **options: Any) -> Any:
    folder, resumed = str(folder), options.pop("resumed", None)
    settings = SETTINGS | {"gradient_accumulation_steps": accumulate} | options
    arguments = TrainingArguments(folder, **settings)
    made = Trainer(make_llama(scale=1.0), arguments, train_dataset=Rows(), callbacks=callbacks)
    made.train(resume_from_checkpoint=resumed)
    return made


def sft(folder: Path, callbacks: list[Any], accumulate: int = 1) -> Any:
    prompts = ["how to make a cake", "what is two plus three", "bake a cake", "steal the car"] * 5
    answers = ["sure here is a cake", "five", "yes i can", "no i am sorry"] * 5
    rows = [{"prompt": p, "completion": a} for p, a in zip(prompts, answers, strict=True)]
    arguments = SFTConfig(
        str(folder), gradient_accumulation_steps=accumulate, max_length=32, bf16=False, **SETTINGS
    )
    made = SFTTrainer(
        make_llama(scale=1.0),
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(),
        peft_config=LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False),
        callbacks=callbacks,
    )
    made.train()
    return made


def weights(made: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in made.model.parameters()])


@pytest.mark.parametrize("made", [trainer, sft])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("strategy", ["moderate", "random"])
def test_all_rows_are_the_trainer_without(
    made: Any, accumulate: int, strategy: str, tmp_path: Path
) -> None:
    """Losses by num_items_in_batch, clipping, and a last step of fewer micro-batches."""
    plain, chosen = Witness(), Witness()
    torch.manual_seed(0)
    wanted = made(tmp_path / "a", [plain], accumulate)
    torch.manual_seed(0)
    selector = Selector(strategy, 1.0)
    found = made(tmp_path / "b", [SelectionCallback(selector), chosen], accumulate)
    assert len(selector.history) == len(plain.norms) == len(chosen.norms) >= 2
    assert torch.allclose(torch.tensor(chosen.norms), torch.tensor(plain.norms), rtol=1e-4)
    assert torch.allclose(weights(found), weights(wanted), atol=1e-6)
    logged = [
        [entry["grad_norm"] for entry in one.state.log_history if "grad_norm" in entry]
        for one in (wanted, found)
    ]
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)


@pytest.mark.parametrize("made", [trainer, sft])
def test_some_rows_of_the_whole_step_are_learned(made: Any, tmp_path: Path) -> None:
    selector = Selector("moderate", 0.25)
    made(tmp_path, [SelectionCallback(selector)], 2)
    sizes = [(len(taken.rows), taken.batch_size) for taken in selector.history]
    assert sizes[:2] == [(2, 8), (2, 8)]
    assert {taken.step for taken in selector.history} == set(range(1, len(sizes) + 1))


def test_an_epoch_taken_up_midway_ends_with_the_micro_batches_that_are_left(
    tmp_path: Path,
) -> None:
    """Six micro-batches, four a step: the second step has two, and is chosen before clipping."""
    found = []
    for resumed in (None, str(tmp_path / "checkpoint-1")):
        selector, seen = Selector("moderate", 0.25), Witness()
        callbacks = [SelectionCallback(selector), seen]
        options = {"save_strategy": "steps", "save_steps": 1, "resumed": resumed}
        trainer(tmp_path, callbacks, 4, **options)
        found.append((seen.norms[-1], selector.history[-1].rows, selector.history[-1].step))
    assert found[0] == found[1]
    assert found[0][2] == 2


def test_rows_are_named_by_their_column(tmp_path: Path) -> None:
    selector = Selector("high", 0.25, row_id="id")
    trainer(tmp_path, [SelectionCallback(selector)], remove_unused_columns=False)
    named = [row for taken in selector.history for row in taken.rows]
    assert len(named) == len(set(named)) == 6
    assert min(named) >= 100


def words() -> Behavior:
    ids = ROWS["input_ids"][:8, :4]
    with torch.no_grad():
        targets = make_llama(scale=1.0).eval()(ids).logits[:, -1].argmax(-1)
    return Behavior.next_token("words", ids, targets)


def test_a_monitor_beside_it_changes_nothing(tmp_path: Path) -> None:
    found = []
    for watched in (False, True):
        selector = Selector("moderate", 0.5)
        callbacks: list[Any] = [SelectionCallback(selector)]
        if watched:
            callbacks.insert(0, MonitorCallback(Monitor([words()], policy=SILENT, probe_every=1)))
        done = trainer(tmp_path / str(watched), callbacks)
        found.append((weights(done), [taken.rows for taken in selector.history]))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("first", ["selector", "monitor"])
def test_the_selected_gradient_is_there_before_a_guard_looks(first: str) -> None:
    """Whichever was put on first; and the guard acts on it."""
    model, given = training("lora"), batch(8)
    ids = given["input_ids"][:4, :3]
    behavior = Behavior.next_token("words", ids, torch.tensor([5, 6, 7, 8]))
    optimizer, selector = sgd(model), Selector("high", 0.25)
    seen: list[torch.Tensor] = []
    monitor = Monitor([behavior], policy=SILENT, probe_every=1)
    guard = guards.Clip(1e-3)
    if first == "selector":
        selector.begin(model, optimizer)
    monitor.begin(model, optimizer, guard)
    if first == "monitor":
        selector.begin(model, optimizer)
    model(**given).loss.backward()
    seen.append(flat(model))
    optimizer.step()
    selector.end()
    monitor.end()
    assert len(monitor.actions) == 1
    model = training("lora")
    rows = selector.history[0].rows
    model(**{key: value[rows] for key, value in given.items()}).loss.backward()
    assert close(seen[0], flat(model))
    assert len(rows) == 2


@pytest.mark.parametrize("name", ["least_harm", "adaptive"])
def test_behaviors_steer_the_choice(name: str) -> None:
    model, given = training("lora"), batch(12)
    ids = given["input_ids"][:6, :3]
    with torch.no_grad():
        targets = model.eval()(ids).logits[:, -1].argmax(-1)
    model.train()
    behavior = Behavior.next_token("words", ids, targets)
    optimizer = torch.optim.AdamW(trained(model).values(), lr=0.01)
    selector = Selector(name, 0.25, behaviors=[behavior], probe_every=2)
    with selector.attach(model, optimizer):
        for _ in range(4):
            model(**given).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    if name == "adaptive":
        assert all(0.0499 < taken.ratio < 0.2501 for taken in selector.history)
        assert selector.history[-1].ratio < selector.history[0].ratio == 0.25
    else:
        assert all("harm/words" in taken.scores for taken in selector.history)
