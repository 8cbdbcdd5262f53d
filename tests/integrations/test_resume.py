"""After a trainer resumes, monitoring continues as if training had not been interrupted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch import Trainer as LightningTrainer
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import resuming
from riprap import Monitor
from riprap.errors import ConfigError
from riprap.integrations.hf import MonitorCallback
from riprap.integrations.lightning import MonitorCallback as LightningCallback
from tiny import make_llama

pytestmark = pytest.mark.slow

STEPS, STOP = 12, 7
ROWS = [{"input_ids": row, "labels": row} for row in resuming.ROWS[:64]]


class StoppedError(Exception):
    """The process is interrupted."""


class Plug(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if state.global_step == STOP:
            raise StoppedError


def trainer(folder: Path, monitor: Monitor, *callbacks: Any, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-3,
        "save_strategy": "steps",
        "save_steps": 5,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    arguments = TrainingArguments(output_dir=str(folder / "trainer"), **(settings | options))
    watching = MonitorCallback(monitor)
    model = make_llama(attention_dropout=0.1)
    return Trainer(model, arguments, train_dataset=ROWS, callbacks=[watching, *callbacks])


def test_transformers(tmp_path: Path) -> None:
    trainer(tmp_path / "whole", resuming.monitor(tmp_path / "whole" / "run")).train()
    broken = tmp_path / "broken"
    with pytest.raises(StoppedError):
        trainer(broken, resuming.monitor(broken / "run"), Plug()).train()
    again = resuming.monitor(broken / "run", resume=True)
    trainer(broken, again).train(resume_from_checkpoint=True)
    assert resuming.content(broken) == resuming.content(tmp_path / "whole")
    assert again.step == STEPS


def test_a_checkpoint_that_another_callback_asks_for_has_the_state(tmp_path: Path) -> None:
    class Asks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_save = state.global_step == 3

    monitor = resuming.monitor(tmp_path / "run")
    trainer(tmp_path, monitor, Asks(), save_strategy="no", max_steps=4).train()
    assert (tmp_path / "trainer" / "checkpoint-3" / "riprap.safetensors").is_file()


def test_a_checkpoint_without_the_state_causes_a_warning(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        trainer(tmp_path, resuming.monitor(tmp_path / "run"), Plug()).train()
    (tmp_path / "trainer" / "checkpoint-5" / "riprap.safetensors").unlink()
    again = resuming.monitor(tmp_path / "run-2")
    with pytest.warns(UserWarning, match=r"there is no monitor state in .*checkpoint-5"):
        trainer(tmp_path, again).train(resume_from_checkpoint=True)
    assert again.step == STEPS - 5


class Lesson(LightningModule):
    def __init__(self, stop: bool) -> None:
        super().__init__()
        self.model = make_llama()
        self.stop = stop

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        if self.stop and self.global_step == STOP:
            raise StoppedError
        return self.model(batch[0], labels=batch[0]).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.model.parameters(), lr=3e-3)


def lightning(folder: Path, monitor: Monitor, stop: bool = False, **fit: Any) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    seed_everything(3, verbose=False)
    saving = ModelCheckpoint(folder / "saved", every_n_train_steps=5, save_top_k=-1)
    LightningTrainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LightningCallback(monitor, submodule="model"), saving],
    ).fit(Lesson(stop), DataLoader(TensorDataset(resuming.ROWS[:20]), batch_size=4), **fit)


def test_lightning(tmp_path: Path) -> None:
    """Checkpoints at the end of an epoch: within an epoch Lightning would restart the data."""
    lightning(tmp_path / "whole", resuming.monitor(tmp_path / "whole" / "run"))
    broken = tmp_path / "broken"
    with pytest.raises(StoppedError):
        lightning(broken, resuming.monitor(broken / "run"), stop=True)
    (saved,) = (broken / "saved").iterdir()
    again = resuming.monitor(broken / "run", resume=True)
    lightning(broken, again, ckpt_path=saved, weights_only=True)
    assert resuming.content(broken) == resuming.content(tmp_path / "whole")


def accelerated(folder: Path, steps: range, monitor: Monitor) -> None:
    accelerator = Accelerator(cpu=True)
    model = make_llama()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=3e-3))
    accelerator.register_for_checkpointing(monitor)
    if steps.start > 1:
        accelerator.load_state(str(folder / "saved"))
    with monitor.watch(model, optimizer):
        for step in steps:
            ids = resuming.ROWS[4 * step : 4 * step + 4]
            optimizer.zero_grad()
            accelerator.backward(model(ids, labels=ids).loss)
            optimizer.step()
            if step == 5:
                shutil.rmtree(folder / "saved", ignore_errors=True)
                accelerator.save_state(str(folder / "saved"))
            if step == STOP:
                raise StoppedError


def test_accelerate(tmp_path: Path) -> None:
    for name in ("whole", "broken"):
        with pytest.raises(StoppedError):
            accelerated(tmp_path / name, range(1, 9), resuming.monitor(tmp_path / name / "run"))
    again = resuming.monitor(tmp_path / "broken" / "run", resume=True)
    with pytest.raises(StoppedError):
        accelerated(tmp_path / "broken", range(6, 9), again)
    assert resuming.content(tmp_path / "broken") == resuming.content(tmp_path / "whole")
    others = ("cleared", "probe_answers")
    kinds = [e["kind"] for e in resuming_events(tmp_path) if e["kind"] not in others]
    assert kinds == ["cost", "ended", "resumed", "cost", "ended"]


def resuming_events(folder: Path) -> list[dict[str, Any]]:
    from riprap.record import Reader

    with Reader(folder / "broken" / "run") as reader:
        return reader.events()


def test_a_monitor_that_is_ahead_of_the_trainer_is_refused(tmp_path: Path) -> None:
    """The interrupted training and the next one are in the same process."""
    monitor = resuming.monitor(tmp_path / "run")
    with pytest.raises(StoppedError):
        trainer(tmp_path, monitor, Plug()).train()
    with pytest.raises(ConfigError, match=r"after step 5.*already seen 7 steps.*new Monitor"):
        trainer(tmp_path, monitor).train(resume_from_checkpoint=True)
    again = resuming.monitor(tmp_path / "run", resume=True)  # as the sentence asks for
    trainer(tmp_path, again).train(resume_from_checkpoint=True)
    assert again.step == STEPS


def test_a_monitor_continues_a_training_that_ended(tmp_path: Path) -> None:
    monitor = resuming.monitor(tmp_path / "run")
    made = trainer(tmp_path, monitor, max_steps=5)
    made.train()
    made.args.max_steps = 8
    made.train(resume_from_checkpoint=True)
    assert monitor.step == 8
    made.train()
    assert monitor.step == 16
