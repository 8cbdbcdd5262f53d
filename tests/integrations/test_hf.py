"""The callback for transformers' Trainer starts and ends monitoring, and adds to the logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from riprap import AlertPolicy, Behavior, Monitor
from riprap.errors import ConfigError
from riprap.integrations.hf import MonitorCallback
from tiny import make_llama, make_tokenizer

IDS = torch.tensor([[3, 7, 9, 12], [3, 8, 10, 4], [5, 6, 7, 8]])


class Rows(Dataset):
    """Random sentences."""

    def __init__(self) -> None:
        self.ids = torch.randint(3, 47, (64, 9), generator=torch.Generator().manual_seed(2))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def watching(policy: AlertPolicy) -> tuple[Any, Monitor]:
    model = make_llama().eval()
    with torch.no_grad():
        targets = model(IDS).logits[:, -1].argmax(-1)
    return model, Monitor([Behavior.next_token("words", IDS, targets)], policy=policy)


def trainer(model: Any, folder: Path, callbacks: list[Any], **options: Any) -> Trainer:
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 3,
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(output_dir=str(folder), **(settings | options))
    tokenizer = make_tokenizer()
    return Trainer(
        model, arguments, train_dataset=Rows(), callbacks=callbacks, processing_class=tokenizer
    )


def test_steps_are_the_optimizers(policy: AlertPolicy, tmp_path: Path) -> None:
    model, monitor = watching(policy)
    trainer(model, tmp_path, [MonitorCallback(monitor)], gradient_accumulation_steps=2).train()
    history = monitor.history()
    assert monitor.step == 6
    assert history[history.signal == "interference"].step.tolist() == [1, 2, 3, 4, 5, 6]
    assert history[history.signal == "margin"].step.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert "ERROR" not in set(history.state)


def test_training_can_continue_and_so_does_the_count(policy: AlertPolicy, tmp_path: Path) -> None:
    model, monitor = watching(policy)
    callback = MonitorCallback(monitor)
    trainer(model, tmp_path, [callback], max_steps=2).train()
    trainer(model, tmp_path, [callback], max_steps=3).train()
    assert monitor.step == 5
    assert "ERROR" not in set(monitor.history().state)


class Interrupt(TrainerCallback):
    """The user presses Ctrl-C."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt


def test_after_an_interruption_training_can_be_monitored_again(
    policy: AlertPolicy, tmp_path: Path
) -> None:
    model, monitor = watching(policy)
    callback = MonitorCallback(monitor)
    with pytest.raises(KeyboardInterrupt):
        trainer(model, tmp_path, [callback, Interrupt()]).train()
    trainer(model, tmp_path, [callback], max_steps=3).train()
    assert monitor.step == 4


def test_a_frozen_model_is_refused_before_training(policy: AlertPolicy, tmp_path: Path) -> None:
    model, monitor = watching(policy)
    frozen = trainer(model, tmp_path, [MonitorCallback(monitor)])
    frozen.create_optimizer()
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to watch"):
        frozen.train()
    assert monitor.step == 0


def test_something_other_than_a_trainer_is_refused(policy: AlertPolicy) -> None:
    _, monitor = watching(policy)
    callback: Any = MonitorCallback(monitor)
    with pytest.raises(ConfigError, match=r"without a model or an optimizer.*transformers Trainer"):
        callback.on_train_begin(None, None, None, model=None)


def test_a_step_that_the_scaler_skipped_is_recorded(policy: AlertPolicy, tmp_path: Path) -> None:
    class Overflows(TrainerCallback):
        """Optimizer of Accelerate after an overflow in fp16."""

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kwargs["optimizer"]._is_overflow = state.global_step == 2

    model, monitor = watching(policy)
    trainer(model, tmp_path, [Overflows(), MonitorCallback(monitor)]).train()
    skipped = monitor.history().query("signal == 'step'")
    assert skipped.state.tolist() == ["NOT_RUN"]
    assert "overflow" in skipped.detail.item()
