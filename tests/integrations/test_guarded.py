"""Guards under trainers act on the step that is taken, or refuse to start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch import Trainer as LightningTrainer
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from riprap import AlertPolicy, Behavior, Monitor, guards
from riprap.integrations.hf import MonitorCallback
from riprap.integrations.lightning import MonitorCallback as LightningCallback
from riprap.types import Action
from tiny import make_llama, make_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:riprap. guard rollback"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
]
IDS = torch.randint(3, 47, (12, 6), generator=torch.Generator().manual_seed(4))
ROWS = torch.randint(3, 47, (64, 9), generator=torch.Generator().manual_seed(2))
RATE = 1e-2
SILENT = {"name": "silent", "detectors": [{"kind": "forecast"}]}


def words() -> Behavior:
    """Answers that the model already gives."""
    with torch.no_grad():
        targets = make_llama().eval()(IDS).logits[:, -1].argmax(-1)
    return Behavior.next_token("words", IDS, targets)


def monitor_of(*behaviors: Behavior) -> Monitor:
    return Monitor(behaviors or [words()], policy=AlertPolicy.parse(SILENT, "here"), probe_every=5)


class Witness(TrainerCallback):
    """Gradients and updates of the optimizer in float64, recorded from outside."""

    def __init__(self) -> None:
        self.gradients: list[list[Tensor]] = []
        self.products: list[float] = []  # ⟨g, −h⟩ at the hook, after all others
        self.updates: list[list[Tensor]] = []
        self.sizes: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        trained = [p for p in model.parameters() if p.requires_grad]
        one = words()

        def before(*_: Any) -> None:
            kept = [p.grad.clone() for p in trained]
            self.before = [p.detach().clone() for p in trained]
            training = model.training
            margins = one.margins(model.eval(), one.probes).mean()
            model.train(training)
            own = torch.autograd.grad(margins, trained)
            products = [(h.double() * g.double()).sum() for h, g in zip(own, kept, strict=True)]
            self.products.append(-float(sum(products)))
            self.gradients.append(kept)
            self.sizes.append(float(torch.cat([g.flatten() for g in kept]).norm()))

        def after(*_: Any) -> None:
            pairs = zip(trained, self.before, strict=True)
            self.updates.append([p.detach() - old for p, old in pairs])

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)


def arguments(kind: Any, folder: Path, **options: Any) -> Any:
    settings = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    return kind(**(settings | options))


def plain(folder: Path, callbacks: list[Any], model: Any = None, **options: Any) -> Trainer:
    rows = [{"input_ids": row, "labels": row} for row in ROWS]
    settings = arguments(TrainingArguments, folder, **options)
    return Trainer(model or make_llama(), settings, train_dataset=rows, callbacks=callbacks)


def adapted(folder: Path, callbacks: list[Any], **options: Any) -> Trainer:
    model = get_peft_model(make_llama(), LoraConfig(r=4, target_modules="all-linear"))
    return plain(folder, callbacks, model, **options)


def sft(folder: Path, callbacks: list[Any], **options: Any) -> Trainer:
    rows = Dataset.from_list([{"input_ids": row.tolist()} for row in ROWS])
    settings = arguments(SFTConfig, folder, bf16=False, max_length=16, **options)
    adapter = LoraConfig(r=4, target_modules="all-linear")
    return SFTTrainer(
        model=make_llama(),
        args=settings,
        train_dataset=rows,
        processing_class=make_tokenizer(),
        peft_config=adapter,
        callbacks=callbacks,
    )


TRAINERS: dict[str, Any] = {
    "plain": (plain, {}),
    "clipped": (plain, {"max_grad_norm": 0.1}),
    "accumulated": (plain, {"gradient_accumulation_steps": 2}),
    "lora": (adapted, {}),
    "lora, clipped, accumulated": (
        adapted,
        {"max_grad_norm": 0.1, "gradient_accumulation_steps": 2},
    ),
    "sft with lora": (sft, {"max_grad_norm": 0.1}),
}


@pytest.mark.parametrize("kind", TRAINERS)
def test_agem_changes_the_gradients_of_adamw(kind: str, tmp_path: Path) -> None:
    make, options = TRAINERS[kind]
    ends, seen, monitor = [], [], monitor_of()
    for guard in (None, guards.AGEM(refresh=1)):
        witness = Witness()
        callbacks = [MonitorCallback(monitor, guard), witness] if guard else [witness]
        torch.manual_seed(5)
        trainer = make(tmp_path / str(guard is None), callbacks, **options)
        trainer.train()
        ends.append([p.detach().clone() for p in trainer.model.parameters()])
        seen.append(witness)
    alone, guarded = seen
    applied = {action.step: action for action in monitor.actions if action.applied}
    assert len(monitor.actions) == 6
    assert applied
    assert not all(map(torch.equal, *ends))
    first = min(applied)  # up to it both have gone the same way
    assert applied[first].before["words"] == pytest.approx(alone.products[first - 1], rel=1e-3)
    assert alone.products[first - 1] < 0
    for step, action in applied.items():
        assert guarded.products[step - 1] >= -1e-4 * abs(action.before["words"])
    if "clipped" in kind or "sft" in kind:
        assert max(guarded.sizes) <= 0.1 * (1 + 1e-4)  # what is taken out makes it no longer
    # Adam's first update is −lr · g / (|g| + ε): of the gradient that the guard left.
    for gradient, update in zip(guarded.gradients[0], guarded.updates[0], strict=True):
        expected = -RATE * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(update, expected, atol=2e-5, rtol=1e-3)


def backs(monitor: Monitor) -> list[Action]:
    return [action for action in monitor.actions if action.applied]


def healthy(model: Any) -> bool:
    one = words()
    with torch.no_grad():
        return bool((one.margins(model.eval(), one.probes) > 0).float().mean() >= one.floor)


class Rates(TrainerCallback):
    """Learning rate of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])


def test_rollback_under_trainer_cuts_its_schedule(tmp_path: Path) -> None:
    monitor, rates = monitor_of(), Rates()
    guard = guards.Rollback(every=2, lr_factor=0.1, keep_learning=False)
    options = {"max_steps": 30, "lr_scheduler_type": "linear", "learning_rate": 0.05}
    trainer = plain(tmp_path, [MonitorCallback(monitor, guard), rates], **options)
    trainer.train()
    first = backs(monitor)[0]
    back = int(first.detail.split("state of step ")[1].split(";")[0])
    # The schedule too is that of the earlier step, times the cut; it counts on after each step, so
    # that going back to the very start leaves it at its second rate.
    assert rates.rates[first.step - 1] == pytest.approx(0.05 * (1 - (first.step - 1) / 30))
    assert rates.rates[first.step] == pytest.approx(0.1 * 0.05 * (1 - max(back, 1) / 30))
    assert trainer.state.global_step == 30
    assert healthy(trainer.model)
    alone = plain(tmp_path / "alone", [], **options)
    alone.train()
    assert not healthy(alone.model)


def test_rollback_ends_the_training_of_a_trainer(tmp_path: Path) -> None:
    monitor = monitor_of()
    callback = MonitorCallback(
        monitor, guards.Rollback(every=2, max_rollbacks=0, keep_learning=False)
    )
    trainer = plain(tmp_path, [callback], max_steps=30, learning_rate=0.05)
    with pytest.warns(UserWarning, match=r"guard rollback: words: .* training should stop"):
        trainer.train()
    (last,) = backs(monitor)
    assert trainer.state.global_step == last.step < 30
    assert healthy(trainer.model)


class Words(LightningModule):
    """Small language model as a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_llama()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.model(batch[0], labels=batch[0]).loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 30)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def lightning(guard: guards.Guard, **options: Any) -> tuple[Monitor, LightningTrainer, Words]:
    seed_everything(3, verbose=False)
    monitor, module = monitor_of(), Words()
    trainer = LightningTrainer(
        max_steps=20,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LightningCallback(monitor, guard, submodule="model")],
        **options,
    )
    trainer.fit(module, DataLoader(TensorDataset(ROWS), batch_size=4))
    return monitor, trainer, module


def test_agem_acts_under_lightning() -> None:
    options: dict[str, Any] = {"gradient_clip_val": 0.1, "accumulate_grad_batches": 2}
    guarded, _, module = lightning(guards.AGEM(refresh=1), **options)
    shadowed, _, alone = lightning(guards.AGEM(refresh=1, shadow=True), **options)
    assert backs(guarded)
    assert not backs(shadowed)
    for action in backs(guarded):
        assert action.before["words"] < 0 <= action.after["words"] + 1e-4
    pairs = zip(module.parameters(), alone.parameters(), strict=True)
    assert not all(torch.equal(one, two) for one, two in pairs)


def test_rollback_ends_the_training_of_lightning() -> None:
    monitor, trainer, module = lightning(
        guards.Rollback(every=2, max_rollbacks=1, keep_learning=False)
    )
    assert [action.step for action in backs(monitor)][-1] == trainer.global_step < 20
    assert trainer.should_stop
    assert healthy(module.model)
