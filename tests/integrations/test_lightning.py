"""Lightning: bit-identity, steps, logs, refusals."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from invariants.test_no_trace import IDS, assert_read, monitor_of, of_words, same, state
from riprap import AlertPolicy, Behavior, Monitor
from riprap.errors import ConfigError
from riprap.record import Reader, save_state
from tiny import make_llama

lightning = pytest.importorskip("lightning.pytorch")
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402
from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402
from lightning.pytorch.utilities import grad_norm  # noqa: E402

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


def trained(
    folder: Path,
    callbacks: list[Any],
    optimizers: int = 1,
    kind: Any = Words,
    options: dict[str, Any] | None = None,
    fit: dict[str, Any] | None = None,
) -> tuple[Any, Any]:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    module = kind(optimizers)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(IDS), batch_size=4, shuffle=True
    )
    settings = {
        "max_steps": 12,
        "accumulate_grad_batches": 2 if optimizers == 1 else 1,
        "gradient_clip_val": 1.0 if optimizers == 1 else None,
        "enable_checkpointing": any(isinstance(one, ModelCheckpoint) for one in callbacks),
    }
    trainer = lightning.Trainer(
        **(settings | (options or {})),
        accelerator="cpu",
        logger=CSVLogger(folder),
        log_every_n_steps=4,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(module, loader, **(fit or {}))
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


def rows_of(kind: str, folder: Path) -> list[tuple[int, dict[str, Any]]]:
    with Reader(folder) as reader:
        return [(e["step"], e["facts"]) for e in reader.events() if e["kind"] == kind]


def test_the_record_has_losses_under_accumulation(policy: AlertPolicy, tmp_path: Path) -> None:
    """The mean over the micro-batches of the steps since the last time, as a Trainer logs it."""

    class Noted(Words):
        seen: ClassVar[list[float]] = []

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            loss = super().training_step(batch, index)
            self.seen.append(float(loss))
            return loss

    behaviors = of_words()
    monitor = Monitor(behaviors, policy, run_dir=tmp_path / "run")
    trained(tmp_path, [MonitorCallback(monitor, submodule="model")], kind=Noted)
    told = rows_of("training", tmp_path / "run")
    assert [step for step, _ in told] == [4, 8, 12]
    means = [sum(Noted.seen[8 * i : 8 * i + 8]) / 8 for i in range(3)]
    assert [facts["loss"] for _, facts in told] == pytest.approx(means, rel=1e-5)
    assert {facts["learning_rate"] for _, facts in told} == {1e-2}


def test_the_record_has_what_the_module_logs_and_all_checkpoints(
    policy: AlertPolicy, tmp_path: Path
) -> None:
    class Logs(Words):
        norms: ClassVar[list[float]] = []

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            found = grad_norm(self, norm_type=2)
            self.norms.append(float(found["grad_2.0_norm_total"]))
            self.log_dict(found)

        def validation_step(self, batch: list[Tensor], index: int) -> None:
            self.log("val_loss", torch.tensor(2.0 + index))

        def val_dataloader(self) -> Any:
            return torch.utils.data.DataLoader([IDS[0], IDS[1]], batch_size=1)

    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=4, save_last=True)
    monitor = Monitor(of_words(), policy, run_dir=tmp_path / "run")
    own = [MonitorCallback(monitor, submodule="model"), saving]
    options = {"val_check_interval": 4, "check_val_every_n_epoch": None}
    trained(tmp_path, own, kind=Logs, options=options)
    told = rows_of("training", tmp_path / "run")
    norms = {step: facts["grad_norm"] for step, facts in told if "grad_norm" in facts}
    assert norms == pytest.approx({step: Logs.norms[step - 1] for step in (4, 8, 12)})
    losses = [facts["eval_loss"] for _, facts in told if "eval_loss" in facts]
    assert losses and set(losses) == {2.5}
    saved = [(s, Path(f["path"]).name) for s, f in rows_of("checkpoint", tmp_path / "run")]
    assert [step for step, _ in saved] == [4, 4, 8, 8, 12, 12]
    assert [name == "last.ckpt" for _, name in saved] == [False, True] * 3


def test_a_step_that_the_scaler_skips_is_recorded(policy: AlertPolicy, tmp_path: Path) -> None:
    class Overflows(Words):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            loss = super().training_step(batch, index)
            return loss * float("inf") if index == 2 else loss

    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    plugin.precision = "bf16-mixed"  # the CPU has no half precision worth the name
    monitor = Monitor(of_words(), policy, run_dir=tmp_path / "run")
    own = {"plugins": [plugin], "accumulate_grad_batches": 1, "max_steps": 5}
    trained(tmp_path, [MonitorCallback(monitor, submodule="model")], kind=Overflows, options=own)
    skipped = monitor.history().query("signal == 'step' and state == 'NOT_RUN'")
    assert skipped.step.tolist() == [2]
    assert "overflow" in skipped.detail.iloc[0]
    assert monitor.step == 4


def test_a_checkpoint_without_the_state_is_not_taken_for_one(
    policy: AlertPolicy, tmp_path: Path
) -> None:
    """A run that began without a monitor: monitoring starts there, and says so."""
    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=5)
    trained(tmp_path, [saving])
    (saved,) = (tmp_path / "saved").glob("*step=10.ckpt")
    fit = {"ckpt_path": saved, "weights_only": True}
    monitor = monitor_of(of_words(), policy)
    with pytest.warns(UserWarning, match=r"no monitor state in the checkpoint .*step=10\.ckpt"):
        trained(tmp_path, [MonitorCallback(monitor, submodule="model")], fit=fit)
    assert monitor.step == 2
    used = Monitor(of_words(), policy, run_dir=tmp_path / "run")
    trained(tmp_path, [MonitorCallback(used, submodule="model")])
    used.record.close()
    again = Monitor(of_words(), policy, run_dir=tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match="would hide the readings of the record"):
        trained(tmp_path, [MonitorCallback(again, submodule="model")], fit=fit)


def test_the_state_may_be_in_a_folder_of_its_own(policy: AlertPolicy, tmp_path: Path) -> None:
    class Saves(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 10 and not (tmp_path / "own").exists():
                save_state(tmp_path / "own" / "riprap.safetensors", first.state_dict())

    first = Monitor(of_words(), policy, run_dir=tmp_path / "run")
    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=5)
    trained(tmp_path, [MonitorCallback(first, submodule="model"), Saves(), saving])
    first.record.close()
    (saved,) = (tmp_path / "saved").glob("*step=10.ckpt")
    again = Monitor(of_words(), policy, run_dir=tmp_path / "run", resume=True)
    own = MonitorCallback(again, submodule="model", checkpoint=tmp_path / "own")
    trained(tmp_path, [own], fit={"ckpt_path": saved, "weights_only": True})
    assert again.step == 12
    assert [facts["path"] for _, facts in rows_of("checkpoint", tmp_path / "run")][-1] == str(saved)
