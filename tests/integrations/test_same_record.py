"""One training in five kinds of loops: the same margins, events, alerts, actions and resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from integrations import axolotl_stand_in
from riprap import Monitor
from riprap.guards import Guard
from riprap.integrations.accelerate import MonitorTracker
from riprap.integrations.config import (
    MonitorConfig,
    build_behaviors,
    build_monitor,
    check_monitor_config,
)
from riprap.integrations.hf import MonitorCallback
from riprap.record import Reader, events_that_stand, load_state, save_state
from tiny import WORDS, make_llama, make_tokenizer

lightning = pytest.importorskip("lightning.pytorch")
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from riprap.integrations.lightning import MonitorCallback as LightningCallback  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:riprap. behavior"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
STEPS, EVERY, STOP, RATE = 10, 5, 7, 0.02
TOKENIZER = make_tokenizer()
ROWS = torch.randint(6, 47, (20, 9), generator=torch.Generator().manual_seed(2))  # 5 steps an epoch
EVENTS = ("training", "checkpoint", "plan", "cost", "ended", "resumed", "cleared", "guard")
EVENTS += ("probe_answers", "stop_asked")


class StoppedError(Exception):
    """The process is interrupted."""


@dataclass
class Run:
    """What all loops are given.

    Attributes:
        block: keys of the monitor, as a configuration file has them.
        resume: folder of the checkpoint from which the loop continues; None: from the start.
        stop_after: step after which the process is interrupted.
    """

    folder: Path
    block: dict[str, Any]
    resume: Path | None = None
    stop_after: int | None = None
    model: Any = field(default_factory=make_llama)

    def built(self) -> tuple[Monitor, Guard | None]:
        config = MonitorConfig.parse(self.block, "here")
        behaviors = build_behaviors(config, make_llama(), TOKENIZER)  # of the start
        policy, resume = check_monitor_config(config), self.resume is not None
        return build_monitor(config, behaviors, policy, config.run_dir, {}, resume)[:2]

    def batch(self, step: int) -> torch.Tensor:
        first = 4 * ((step - 1) % 5)
        return ROWS[first : first + 4]

    def made(self) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - n / STEPS)
        return optimizer, scheduler


def plain(run: Run) -> None:
    monitor, guard = run.built()
    optimizer, scheduler = run.made()
    first = 1
    if run.resume is not None:
        rest = torch.load(run.resume / "rest.pt", weights_only=True)
        run.model.load_state_dict(rest["model"])
        scheduler.load_state_dict(rest["scheduler"])
        optimizer.load_state_dict(rest["optimizer"])
        monitor.load_state_dict(load_state(run.resume / "riprap.safetensors"))
        first = rest["step"] + 1
    left = STEPS + 1 - first
    if guard is not None:
        guard.attach_trainer_state(scheduler, None)
    with monitor.watch(run.model, optimizer, guard, steps=left, scheduler=scheduler):
        for step in range(first, STEPS + 1):
            loss = run.model(run.batch(step), labels=run.batch(step)).loss
            loss.backward()
            optimizer.step()
            monitor.log_training(loss=loss, learning_rate=optimizer.param_groups[0]["lr"])
            scheduler.step()
            optimizer.zero_grad()
            if step % EVERY == 0 and not monitor.should_stop:
                folder = run.folder / f"checkpoint-{step}"
                save_state(folder / "riprap.safetensors", monitor.state_dict())
                rest = {"model": run.model.state_dict(), "optimizer": optimizer.state_dict()}
                rest |= {"scheduler": scheduler.state_dict(), "step": step}
                torch.save(rest, folder / "rest.pt")
                monitor.log_checkpoint(folder)
            if step == run.stop_after:
                raise StoppedError
            if monitor.should_stop:
                break


def accelerated(run: Run) -> None:
    monitor, guard = run.built()
    tracker = MonitorTracker(monitor, guard, checkpoint=run.resume)
    accelerator = Accelerator(cpu=True, log_with=[tracker], step_scheduler_with_optimizer=False)
    accelerator.init_trackers("here")
    optimizer, scheduler = run.made()
    model, optimizer, scheduler = accelerator.prepare(run.model, optimizer, scheduler)
    first = 1
    if run.resume is not None:
        accelerator.load_state(str(run.resume))
        first = int(run.resume.name.split("-")[1]) + 1
    plan = {"steps": STEPS + 1 - first, "scheduler": scheduler}
    with tracker.watch(accelerator, model, optimizer, **plan):
        for step in range(first, STEPS + 1):
            loss = model(run.batch(step), labels=run.batch(step)).loss
            accelerator.backward(loss)
            optimizer.step()
            accelerator.log({"train_loss": loss.item(), "lr": optimizer.param_groups[0]["lr"]})
            scheduler.step()
            optimizer.zero_grad()
            if step % EVERY == 0 and not monitor.should_stop:
                accelerator.save_state(str(run.folder / f"checkpoint-{step}"))
            if step == run.stop_after:
                raise StoppedError
            if monitor.should_stop:
                break
    accelerator.end_training()


class Plug(TrainerCallback):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise StoppedError


def trainer(run: Run, callbacks: list[Any]) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(run.folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=RATE,
        optim="sgd",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="steps",
        save_steps=EVERY,
        train_sampling_strategy="sequential",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [{"input_ids": row, "labels": row} for row in ROWS]
    own = [*callbacks, Plug(run.stop_after)]
    return Trainer(
        run.model, arguments, train_dataset=rows, callbacks=own, processing_class=TOKENIZER
    )


def transformers(run: Run) -> None:
    own = MonitorCallback(*run.built())
    trainer(run, [own]).train(None if run.resume is None else str(run.resume))


def axolotl(run: Run) -> None:
    resume = None if run.resume is None else str(run.resume)
    plugins = ["riprap.integrations.axolotl.RiprapPlugin"]
    document = {"base_model": "tiny", "plugins": plugins, "riprap": run.block}
    cfg, made = axolotl_stand_in.load(document | {"resume_from_checkpoint": resume})
    assert cfg.riprap["run_dir"] == run.block["run_dir"]
    own = axolotl_stand_in.build(cfg, made, lambda before: trainer(run, before), run.model)
    own.train(resume_from_checkpoint=resume)


class Lesson(lightning.LightningModule):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model, self.given = run.model, run

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        if self.global_step == self.given.stop_after:
            raise StoppedError
        return self.model(batch[0], labels=batch[0]).loss

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = self.given.made()
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def lit(run: Run) -> None:
    name = {"filename": "checkpoint-{step}", "auto_insert_metric_name": False}
    saving = ModelCheckpoint(run.folder, every_n_train_steps=EVERY, save_top_k=-1, **name)
    watching = LightningCallback(*run.built(), submodule="model")
    own = lightning.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watching, saving],
    )
    loader = DataLoader(TensorDataset(ROWS), batch_size=4)
    resume = {} if run.resume is None else {"ckpt_path": run.resume, "weights_only": True}
    own.fit(Lesson(run), loader, **resume)


LOOPS: dict[str, Callable[[Run], None]] = {
    "plain": plain,
    "transformers": transformers,
    "axolotl": axolotl,
    "lightning": lit,
    "accelerate": accelerated,
}


@pytest.fixture(autouse=True)
def _axolotl(monkeypatch: pytest.MonkeyPatch) -> None:
    axolotl_stand_in.install(monkeypatch)


@pytest.fixture
def block(tmp_path: Path) -> dict[str, Any]:
    """Words that the model already chooses, of which training takes some away."""
    picked = np.random.default_rng(0)
    rows = []
    for _ in range(60):
        prompt, options = picked.choice(WORDS, 4), picked.choice(WORDS, 3, replace=False)
        rows.append({"prompt": " ".join(prompt), "options": list(options), "answer": 0})
    file = tmp_path / "choices.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return {
        "behaviors": [{"probe_set": str(file), "keep_passing": True}],
        "probe_every": 5,
        "budget": None,
    }


def read(run_dir: Path, stands: bool = False) -> dict[str, Any]:
    """What the record has, as far as it should not depend on the loop.

    Args:
        stands: leave out the events of steps that were taken again.
    """
    with Reader(run_dir) as reader:
        (name,) = reader.units("margin")
        found = events_that_stand(reader.events()) if stands else reader.events()
        events = [e for e in found if e["kind"] in EVENTS]
        checkpoints = [e for e in events if e["kind"] == "checkpoint"]
        numbers = [(e["step"], e["facts"]) for e in events if e["kind"] == "training"]
        return {
            "margins": reader.margins(name),
            "events": sorted((e["step"], e["kind"]) for e in events if e["kind"] != "plan"),
            "planned": [e["facts"].get("steps") for e in events if e["kind"] == "plan"],
            "training": {s: (f["loss"], f["learning_rate"]) for s, f in numbers if "loss" in f},
            "saved": [Path(e["facts"]["path"]).stem for e in checkpoints],
            "alerts": [(a.step, a.behavior, a.detector, a.level) for a in reader.alerts()],
            "actions": [(a.step, a.guard, a.moment, a.applied) for a in reader.actions()],
        }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for key in ("margins", "training"):
        own, own_other = one.pop(key), other.pop(key)
        assert sorted(own) == sorted(own_other), key
        for step, values in own.items():
            np.testing.assert_allclose(values, own_other[step], rtol=1e-6, atol=1e-6, err_msg=key)
    assert one == other


GUARDS = {"none": None, "agem": {"name": "AGEM"}, "rollback": {"name": "Rollback", "every": 2}}


@pytest.mark.parametrize("guard", GUARDS)
def test_the_same_record(guard: str, block: dict[str, Any], tmp_path: Path) -> None:
    found = {}
    for name, loop in LOOPS.items():
        run_dir = tmp_path / name / "run"
        own = {"run_dir": str(run_dir)} | ({"guard": GUARDS[guard]} if GUARDS[guard] else {})
        loop(Run(tmp_path / name / "saved", block | own))
        found[name] = read(run_dir)
        assert (run_dir / "report.html").is_file() == (name != "plain")
    assert found["plain"]["alerts"], "nothing to compare"
    assert found["plain"]["saved"] == ["checkpoint-5", "checkpoint-10"]
    assert len(found["plain"]["training"]) == STEPS
    assert bool(found["plain"]["actions"]) == (guard != "none")
    for name in list(LOOPS)[1:]:
        assert_same(dict(found["plain"]), dict(found[name]))


def test_an_alert_stops_all_at_the_same_step(block: dict[str, Any], tmp_path: Path) -> None:
    ends = {}
    for name, loop in LOOPS.items():
        run_dir = tmp_path / name / "run"
        loop(Run(tmp_path / name / "saved", block | {"run_dir": str(run_dir), "stop_on": "watch"}))
        ends[name] = [at for at, kind in read(run_dir)["events"] if kind == "ended"]
    assert ends["plain"][0] < STEPS
    assert len(set(map(tuple, ends.values()))) == 1, ends


@pytest.mark.parametrize("name", LOOPS)
def test_a_resumed_run_is_the_same(name: str, block: dict[str, Any], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    block["guard"] = GUARDS["agem"]
    LOOPS[name](Run(whole, block | {"run_dir": str(whole / "run")}))
    given = block | {"run_dir": str(parts / "run")}
    with pytest.raises(StoppedError):
        LOOPS[name](Run(parts, given, stop_after=STOP))
    (saved,) = (path for path in parts.iterdir() if path.name.startswith("checkpoint"))
    LOOPS[name](Run(parts, given, resume=saved))
    one, other = read(whole / "run"), read(parts / "run", stands=True)
    other["events"].remove((5, "resumed"))
    other["events"].remove((5, "guard"))
    assert other["planned"][0] == one["planned"][0] == STEPS
    for own in (one, other):
        own["planned"] = []  # a resumed loop plans the steps that are left
    assert one["actions"] and (10, "probe_answers") in one["events"]
    assert_same(one, other)
