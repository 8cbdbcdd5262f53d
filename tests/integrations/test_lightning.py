"""Lightning: bit-identity, steps, logs, refusals."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from invariants.test_no_trace import IDS, assert_read, monitor_of, of_words, same, state
from riprap import AlertPolicy
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
        self.automatic_optimization = optimizers == 1
        self.count = optimizers

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.model(batch[0], labels=batch[0]).loss

    def configure_optimizers(self) -> Any:
        made = [torch.optim.AdamW(self.parameters(), lr=1e-2) for _ in range(self.count)]
        return made if self.count > 1 else made[0]


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
    trained(tmp_path, [MonitorCallback(monitor_of(of_words(), policy), submodule="model")])
    logged = "".join(file.read_text() for file in tmp_path.rglob("metrics.csv"))
    assert "riprap/words/score" in logged


def test_several_optimizers_are_refused(policy: AlertPolicy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 optimizers"):
        trained(
            tmp_path,
            [MonitorCallback(monitor_of(of_words(), policy), submodule="model")],
            optimizers=2,
        )


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
