"""Trainers of transformers and TRL end bit-identical with a monitor, and carry its numbers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from invariants.test_no_trace import same
from riprap import Behavior, Monitor
from riprap.integrations.hf import MonitorCallback
from riprap.record import Reader
from tiny import PROMPTS, make_llama, make_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TOKENIZER = make_tokenizer()
IDS = torch.randint(6, 44, (12, 6), generator=torch.Generator().manual_seed(4))
PAIRS = [
    {"prompt": p, "chosen": f" {a}", "rejected": " no sorry"}
    for p in PROMPTS
    for a in ("yes", "sure here", "five", "red cake")
]
LABELED = [
    {"prompt": row["prompt"], "completion": row[key], "label": key == "chosen"}
    for row in PAIRS
    for key in ("chosen", "rejected")
]
TEXTS = [{"text": row["prompt"] + row["chosen"]} for row in PAIRS]
ASKED = [{"prompt": row["prompt"]} for row in PAIRS]
ROWS = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in IDS]


def reward(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text) % 5) for text in completions]


GENERATED = {"num_generations": 2, "max_completion_length": 4, "beta": 0.1}
SHORT = {"max_length": 24}
# name -> module, rows, options of the configuration
TRAINERS: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any]]] = {
    "SFT": ("trl", TEXTS, SHORT),
    "DPO": ("trl", PAIRS, SHORT),
    "KTO": ("trl", LABELED, SHORT),
    "ORPO": ("trl.experimental.orpo", PAIRS, SHORT),
    "CPO": ("trl.experimental.cpo", PAIRS, SHORT),
    "GRPO": ("trl", ASKED, GENERATED),
    "RLOO": ("trl", ASKED, GENERATED),
    "Reward": ("trl", PAIRS, SHORT),
}


def of_words() -> Behavior:
    with torch.no_grad():
        targets = make_llama().eval()(IDS).logits[:, -1].argmax(-1)
    return Behavior.next_token("words", IDS, targets)


def of_scores() -> Behavior:
    """A behavior of a model of rewards: it prefers these rows."""
    return Behavior("words", IDS, lambda model, ids: 5 + model(ids).logits[:, 0])


def reward_model() -> Any:
    torch.manual_seed(0)
    config = make_llama().config
    config.num_labels = 1
    return LlamaForSequenceClassification(config)


def build(kind: str, folder: Path, callbacks: list[Any]) -> Trainer:
    common = {
        "output_dir": str(folder),
        "max_steps": 5,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    if kind == "Trainer":
        rows: Any = Dataset.from_list(ROWS)
        arguments = TrainingArguments(**common)
        return Trainer(make_llama(), arguments, train_dataset=rows, callbacks=callbacks)
    module, given, options = TRAINERS[kind]
    room = importlib.import_module(module)
    config = getattr(room, f"{kind}Config")(**common, bf16=False, **options)
    extra = {"reward_funcs": reward} if kind in ("GRPO", "RLOO") else {}
    saved = folder / "model"  # some trainers load the reference from where the model came
    (reward_model() if kind == "Reward" else make_llama()).save_pretrained(saved)
    family = LlamaForSequenceClassification if kind == "Reward" else LlamaForCausalLM
    return getattr(room, f"{kind}Trainer")(
        model=family.from_pretrained(saved),
        args=config,
        train_dataset=Dataset.from_list(given),
        processing_class=TOKENIZER,
        callbacks=callbacks,
        **extra,
    )


def ended(trainer: Any) -> list[Any]:
    optimizer = trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    history = [
        {key: value for key, value in entry.items() if "runtime" not in key and "per_" not in key}
        for entry in trainer.state.log_history
        if not any("riprap" in key for key in entry)
    ]
    losses = [{k: v for k, v in entry.items() if k in ("loss", "grad_norm")} for entry in history]
    return [weights, optimizer.state_dict(), torch.get_rng_state(), np.random.get_state(), losses]


@pytest.mark.parametrize("kind", ["Trainer", *TRAINERS])
def test_a_trainer_is_bit_identical_and_carries_the_numbers(kind: str, tmp_path: Path) -> None:
    if kind != "Trainer":
        pytest.importorskip(TRAINERS[kind][0])
    ends = []
    behavior = of_scores() if kind == "Reward" else of_words()
    monitor = Monitor([behavior], probe_every=2)
    for callbacks in ([], [MonitorCallback(monitor)]):
        torch.manual_seed(7)
        np.random.seed(7)
        trainer = build(kind, tmp_path / str(len(callbacks)), callbacks)
        trainer.train()
        ends.append(ended(trainer))
    assert same(*ends)
    assert monitor.step == 5
    history = monitor.history()
    assert "ERROR" not in set(history.state)
    margins = history[history.signal == "margin"]
    assert sorted(margins.step) == [0, 1, 2, 3, 4, 5]
    assert margins.value.nunique() > 1
    predicted = history[(history.signal == "interference") & (history.value.abs() > 0)]
    assert set(predicted.step) == {1, 2, 3, 4, 5}
    logged = {
        entry["step"]: entry["riprap/words/margin"]
        for entry in trainer.state.log_history
        if "riprap/words/margin" in entry
    }
    assert logged == pytest.approx(dict(zip(margins.step, margins.value, strict=True)))


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_the_record_has_the_reward_beside_the_behaviors(kind: str, tmp_path: Path) -> None:
    pytest.importorskip(TRAINERS[kind][0])
    monitor = Monitor([of_words()], probe_every=2, run_dir=tmp_path / "run")
    trainer = build(kind, tmp_path, [MonitorCallback(monitor)])
    trainer.train()
    logged = {e["step"]: e["reward"] for e in trainer.state.log_history if "reward" in e}
    with Reader(tmp_path / "run") as reader:
        events = [e for e in reader.events() if e["kind"] == "training"]
    found = {e["step"]: e["facts"]["reward"] for e in events if "reward" in e["facts"]}
    assert found == pytest.approx(logged)
    assert sorted(found) == [2, 4, 5]  # every two steps, and the last
