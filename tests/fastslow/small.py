"""A GRPO trainer on a tiny Llama, with a reward that an instruction or weights can raise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from riprap.fastslow import EditGrammar
from tiny import make_llama, make_tokenizer

TOKENIZER = make_tokenizer()
COLORS = ["red", "blue", "green"]
SENTENCES = ["red car", "blue cake", "green bomb", "one two", "sure here", "paint the car"]
PROBLEMS = [
    {"prompt": f"what is {one} plus {two}", "answer": color}
    for one, two, color in zip(
        ["one", "two", "three", "four", "five", "six"] * 2,
        ["two", "three", "four", "five", "six", "seven"] * 2,
        COLORS * 4,
        strict=True,
    )
]
CHAT = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in PROBLEMS]
GRAMMAR = EditGrammar(SENTENCES)


def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """The share of words that are the answer, and a little for any short word."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [
        text.split().count(right) + 0.1 * sum(len(word) < 4 for word in text.split())
        for text, right in zip(texts, answer, strict=True)
    ]


def make_trainer(
    folder: Path, rows: list[dict[str, Any]] = PROBLEMS, callbacks: Any = (), **options: Any
) -> GRPOTrainer:
    settings: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 4,
        "learning_rate": 1e-2,
        "beta": 0.0,
        "loss_type": "cispo",
        "epsilon_high": 5.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "bf16": False,
        "seed": 3,
    }
    rewards = options.pop("reward_funcs", reward)
    extra = {name: options.pop(name) for name in ("eval_dataset",) if name in options}
    return GRPOTrainer(
        model=options.pop("model", None) or make_llama(scale=8.0),
        reward_funcs=rewards,
        args=GRPOConfig(output_dir=str(folder), **settings | options),
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(),
        callbacks=list(callbacks),
        **extra,
    )


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def plain(state: dict[str, Any]) -> dict[str, Any]:
    """A state as it comes back from a checkpoint."""
    return json.loads(json.dumps(state))
