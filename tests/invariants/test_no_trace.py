"""Training with a monitor is bit-identical to training without it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from riprap import AlertPolicy, Behavior, Monitor, signals
from riprap.integrations.hf import MonitorCallback
from tiny import PROMPTS, Classifier, make_llama, make_tokenizer

TOKENIZER = make_tokenizer()
IDS = torch.randint(3, 47, (32, 9), generator=torch.Generator().manual_seed(2))


def restless(model: nn.Module, ids: Tensor) -> Tensor:
    """Margins that use up randomness of every kind."""
    noise = torch.rand(len(ids)) + random.random() + np.random.rand()
    return model(ids).logits[:, -1, 5] + 0 * noise


def of_words() -> list[Behavior]:
    return [
        Behavior.response_prefix("refusal", TOKENIZER, PROMPTS, ["sorry", "no"], contrast="words"),
        Behavior.next_token("words", IDS[:4, :5], [9, 11, 30, 12], contrast="refusal"),
        Behavior("restless", IDS[4:8], restless),
    ]


def monitor_of(behaviors: list[Behavior], policy: AlertPolicy, **options: Any) -> Monitor:
    settings = {"probe_every": 10, "signals": signals.everything()} | options
    return Monitor(behaviors, policy=policy, **settings)


def state(model: nn.Module, optimizer: Any) -> list[Any]:
    """All that training has come to."""
    return [
        {name: value.clone() for name, value in model.state_dict().items()},
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [(p.requires_grad, p._backward_hooks) for p in model.parameters()],
        [module.training for module in model.modules()],
        [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()],
        optimizer.state_dict(),
        [torch.get_rng_state(), np.random.get_state(), random.getstate()],
    ]


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, two)
    if isinstance(one, np.ndarray):
        return bool((one == two).all())
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


def assert_read(monitor: Monitor, steps: int, least: int = 8) -> None:
    """The watched run was watched."""
    history = monitor.history()
    assert monitor.step == steps
    assert "ERROR" not in set(history.state)
    for behavior in monitor.behaviors:
        assert len(monitor.behavior_histories[behavior.name].steps) >= min(steps, least)
        predicted = history[(history.signal == "interference") & (history.value.abs() > 0)]
        assert behavior.name in set(predicted.behavior)


def random_numbers() -> float:
    """Loops shuffle and augment; they notice if somebody else drew a number."""
    return random.random() + np.random.rand()


def loop(
    model: nn.Module, optimizer: Any, loss: Callable[[], Tensor], steps: int, parts: int = 1
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(parts):
            (loss() * (1 + 0.1 * random_numbers()) / parts).backward()
        optimizer.step()


def compare(
    build: Callable[[], tuple[nn.Module, Any, Callable[[], Tensor]]],
    behaviors: list[Behavior],
    policy: AlertPolicy,
    steps: int = 100,
    parts: int = 1,
    least: int = 8,
    **options: Any,
) -> None:
    ends = []
    for watched in (False, True):
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
        model, optimizer, loss = build()
        if watched:
            monitor = monitor_of(behaviors, policy, **options)
            with monitor.watch(model, optimizer):
                loop(model, optimizer, loss, steps, parts)
            assert_read(monitor, steps, least)
        else:
            loop(model, optimizer, loss, steps, parts)
        ends.append(state(model, optimizer))
    assert same(*ends)


def classifier(kind: str) -> tuple[nn.Module, Any, Callable[[], Tensor]]:
    model = Classifier().train()
    model.layers[3].eval()  # modes are mixed, and must stay so
    optimizer = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    }[kind](model.parameters())

    def loss() -> Tensor:
        logits = model(torch.randn(12, 8))
        return functional.cross_entropy(logits, torch.randint(0, 4, (12,)))

    return model, optimizer, loss


def words_loss(model: nn.Module) -> Tensor:
    ids = torch.randint(3, 47, (4, 8))
    return model(ids, labels=ids).loss


def llama(adapted: bool = False) -> tuple[nn.Module, Any, Callable[[], Tensor]]:
    model: Any = make_llama(attention_dropout=0.2).train()
    if adapted:
        model = get_peft_model(
            model, LoraConfig(r=4, lora_dropout=0.2, target_modules="all-linear")
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(trained, lr=1e-2), lambda: words_loss(model)


pytestmark = pytest.mark.filterwarnings("ignore:behavior .* before training")


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_dropout_and_batch_statistics(kind: str, memory: Behavior, policy: AlertPolicy) -> None:
    compare(lambda: classifier(kind), [memory], policy)


def test_a_language_model(policy: AlertPolicy) -> None:
    compare(llama, of_words(), policy)


@pytest.mark.parametrize("read", [signals.default, signals.per_step])
def test_however_often_updates_are_read(
    read: Callable[[], list[signals.Signal]], policy: AlertPolicy
) -> None:
    compare(llama, of_words(), policy, steps=40, signals=read())


def test_a_budget(policy: AlertPolicy) -> None:
    compare(llama, of_words(), policy, steps=40, least=2, budget=0.03)


def test_accumulated_gradients(policy: AlertPolicy) -> None:
    compare(llama, of_words(), policy, steps=25, parts=3)


def test_mixed_precision(policy: AlertPolicy) -> None:
    def build() -> tuple[nn.Module, Any, Callable[[], Tensor]]:
        model, optimizer, loss = llama()

        def mixed() -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return loss()

        return model, optimizer, mixed

    compare(build, of_words(), policy, steps=15)


@pytest.mark.slow
def test_an_adapter(policy: AlertPolicy) -> None:
    compare(lambda: llama(adapted=True), of_words(), policy)


def test_the_comparison_itself_would_notice(memory: Behavior, policy: AlertPolicy) -> None:
    """An observer that draws one random number is found out."""

    class Meddler(signals.Signal):
        name = "meddler"

        def on_update(self, view: signals.StepView) -> list:
            torch.rand(1)
            return []

    ends = []
    for extra in ([], [Meddler()]):
        torch.manual_seed(5)
        model, optimizer, loss = classifier("sgd")
        monitor = Monitor([memory], policy=policy, signals=extra)
        with monitor.watch(model, optimizer):
            loop(model, optimizer, loss, 10)
        ends.append(state(model, optimizer))
    assert not same(*ends)


def arguments(kind: type, folder: Path, **options: Any) -> Any:
    settings = {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 4,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return kind(**(settings | options))


def with_trainer(folder: Path, callbacks: list[Any]) -> Trainer:
    rows = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in IDS]
    return Trainer(
        make_llama(attention_dropout=0.2),
        arguments(TrainingArguments, folder),
        train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER,
        callbacks=callbacks,
    )


def with_sft_trainer(folder: Path, callbacks: list[Any]) -> SFTTrainer:
    answers = ["sure here is a cake", "sorry i cannot help with that", "yes you can"]
    rows = [
        {
            "prompt": [{"role": "user", "content": PROMPTS[i % 4]}],
            "completion": [{"role": "assistant", "content": answers[i % 3]}],
        }
        for i in range(24)
    ]
    return SFTTrainer(
        model=make_llama(attention_dropout=0.2),
        args=arguments(SFTConfig, folder, bf16=False, max_length=32, completion_only_loss=True),
        train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER,
        peft_config=LoraConfig(r=4, lora_dropout=0.2, target_modules="all-linear"),
        callbacks=callbacks,
    )


@pytest.mark.slow
@pytest.mark.parametrize("build", [with_trainer, with_sft_trainer])
def test_trainers(build: Callable[..., Trainer], policy: AlertPolicy, tmp_path: Path) -> None:
    ends = []
    for watched in (False, True):
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
        monitor = monitor_of(of_words(), policy)
        trainer = build(tmp_path / str(watched), [MonitorCallback(monitor)] if watched else [])
        trainer.train()
        ends.append(state(trainer.model, trainer.optimizer))
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert len(losses) == 3
        ends[-1].append(losses)
        if watched:
            assert_read(monitor, 12)
    assert same(*ends)
