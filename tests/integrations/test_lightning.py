"""Lightning: bit-identity, steps, logs, refusals."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from invariants.test_no_trace import IDS, assert_read, monitor_of, of_words, same, state
from riprap import AlertPolicy, Behavior, Monitor
from riprap.errors import ConfigError
from tiny import make_llama

lightning = pytest.importorskip("lightning.pytorch")
from lightning.pytorch.loggers import CSVLogger  # noqa: E402

from riprap.integrations.lightning import MonitorCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:behavior .* before training"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
]


class Words(lightning.LightningModule):
    """Small language model as a LightningModule."""

    def __init__(self, optimizers: int = 1) -> None:
        super().__init__()
        self.model = make_llama(attention_dropout=0.2).train()
        self.automatic_optimization = optimizers <= 1
        self.count = optimizers

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss: Tensor = self.model(batch[0], labels=batch[0]).loss
        if not self.automatic_optimization:
            self.manual_backward(loss)
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.step()
                optimizer.zero_grad()
        return loss

    def configure_optimizers(self) -> Any:
        parameters = list(self.parameters())
        parts = [parameters[index :: self.count] for index in range(self.count)]
        made = [torch.optim.AdamW(part, lr=1e-2) for part in parts]
        return made if self.count != 1 else made[0]


def trained(folder: Path, callbacks: list[Any], optimizers: int = 1) -> tuple[Any, Any]:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    module = Words(optimizers)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(IDS), batch_size=4, shuffle=True
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=12,
        accumulate_grad_batches=2 if optimizers == 1 else 1,
        gradient_clip_val=1.0 if optimizers == 1 else None,
        logger=CSVLogger(folder),
        log_every_n_steps=4,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(module, loader)
    return module, trainer


def test_no_trace(policy: AlertPolicy, tmp_path: Path) -> None:
    ends = []
    for monitored in (False, True):
        monitor = monitor_of(of_words(), policy)
        module, trainer = trained(
            tmp_path, [MonitorCallback(monitor, submodule="model")] if monitored else []
        )
        ends.append(state(module, trainer.optimizers[0]))
        if monitored:
            assert_read(monitor, 12)
    assert same(*ends)


def test_the_numbers_reach_the_logger(policy: AlertPolicy, tmp_path: Path) -> None:
    """Each evaluation once, at its step, whatever the trainer's own interval."""
    monitor = monitor_of(of_words(), policy)
    trained(tmp_path, [MonitorCallback(monitor, submodule="model")])
    (file,) = tmp_path.rglob("metrics.csv")
    rows = [row for row in csv.DictReader(file.open()) if row.get("riprap/words/margin")]
    margins = monitor.history().query("signal == 'margin' and behavior == 'words'")
    assert [int(row["step"]) for row in rows] == margins.step.tolist()
    assert [float(row["riprap/words/margin"]) for row in rows] == pytest.approx(margins.value)


def test_the_monitor_stops_training_and_says_how_it_ended(
    policy: AlertPolicy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    behaviors = [Behavior.next_token("words", IDS[:12, :5], made_targets())]
    policy = AlertPolicy.default()
    monitor = Monitor(behaviors, policy, run_dir=tmp_path / "run", stop_on="critical")
    _, trainer = trained(tmp_path, [MonitorCallback(monitor, submodule="model")])
    assert monitor.should_stop
    assert monitor.step == trainer.global_step < 12
    assert f"{monitor.step} step" in caplog.text
    assert (tmp_path / "run" / "report.html").is_file()


class Endless(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter([[rows] for rows in IDS.split(4)])


@pytest.mark.parametrize(("limits", "planned"), [({"max_steps": 5}, 5), ({"max_epochs": 1}, None)])
def test_the_planned_steps_are_known_or_not(
    limits: Any, planned: int | None, policy: AlertPolicy
) -> None:
    """Of a data set without a length, nobody knows how many batches an epoch has."""
    monitor = monitor_of(of_words(), policy)
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[MonitorCallback(monitor, submodule="model")],
        **limits,
    )
    loader = torch.utils.data.DataLoader(Endless(), batch_size=None)
    trainer.fit(Words(), loader)
    schedule = monitor.behavior_histories["words"].schedule
    assert (None if schedule is None else schedule.n_steps) == planned
    assert monitor.step > 0


def made_targets() -> Tensor:
    with torch.no_grad():
        return make_llama().eval()(IDS[:12, :5]).logits[:, -1].argmax(-1)


def test_several_optimizers_are_watched(policy: AlertPolicy, tmp_path: Path) -> None:
    monitor = monitor_of(of_words(), policy)
    trained(tmp_path, [MonitorCallback(monitor, submodule="model")], optimizers=2)
    assert monitor.step == 6  # of 12 steps of two optimizers
    assert "ERROR" not in set(monitor.history().state)


def test_a_module_without_an_optimizer_is_refused(policy: AlertPolicy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no optimizer"):
        trained(tmp_path, [MonitorCallback(monitor_of(of_words(), policy))], optimizers=0)


def test_an_unknown_submodule_is_refused(policy: AlertPolicy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no submodule 'body'; it has model"):
        trained(tmp_path, [MonitorCallback(monitor_of(of_words(), policy), submodule="body")])


def test_training_that_fails_leaves_no_hooks(policy: AlertPolicy, tmp_path: Path) -> None:
    class Fails(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                raise RuntimeError("the loop broke")

    monitor = monitor_of(of_words(), policy)
    with pytest.raises(RuntimeError, match="the loop broke"):
        trained(tmp_path, [MonitorCallback(monitor, submodule="model"), Fails()])
    assert monitor.step == 3
    assert not monitor.watching
