"""One run of SmolLM2 on mixed rows, with one selection strategy."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback
from trl import SFTTrainer

from experiments.harness.cache import RUNS, cached
from experiments.row_selection_smollm2.plan import Plan
from experiments.smollm2.teaching import SELF_INSTRUCT, load_refusals, passing
from riprap import evaluation
from riprap.behaviors import Behavior
from riprap.commands.watch import (
    DataConfig,
    WatchConfig,
    load_model,
    load_rows,
    lora_config,
    sft_config,
)
from riprap.detectors import score
from riprap.errors import ConfigError
from riprap.integrations.hf import SelectionCallback
from riprap.integrations.smollm2 import REFUSING
from riprap.selection import Selector
from riprap.selection.strategies import get_strategy

GSM8K = "gsm8k_train.jsonl"
PREFIX = "Sure, here is the answer: "  # of experiments/smollm2/affirmative.yaml
SHORT = 120  # characters of a prompt; longer ones would leave too little room for the response
CATEGORIES = ("affirmative", "plain", "gsm8k")

Mixed = list[dict[str, str]]


def mixed(data: Path, taught: int, held_out: int) -> tuple[Mixed, Mixed]:
    """Load rows to learn, with alternating categories, and held-out rows.

    Only short prompts are used. Instructions at even positions get the affirmative prefix, those
    at odd positions do not, so that the two categories differ only by chance and by the prefix.

    Args:
        data: folder of the public data sets.
        taught, held_out: rows of each category.

    Raises:
        ConfigError: a file is missing or too short.
    """
    tasks = _objects(data / SELF_INSTRUCT)
    answers = _short([(task["instruction"], task["instances"][0]["output"]) for task in tasks])
    sums = _short([(row["question"], row["answer"]) for row in _objects(data / GSM8K)])
    pools = {
        "affirmative": [(prompt, PREFIX + answer) for prompt, answer in answers[::2]],
        "plain": answers[1::2],
        "gsm8k": sums,
    }
    for name, pool in pools.items():
        if len(pool) < taught + held_out:
            raise ConfigError(f"{data} has {len(pool)} rows of {name}; {taught + held_out} needed")
    every = [
        {"id": f"{name}-{at}", "category": name, "prompt": pool[at][0], "response": pool[at][1]}
        for at in range(taught + held_out)
        for name, pool in pools.items()
    ]
    border = taught * len(pools)
    return every[:border], every[border:]


def write(rows: Mixed, file: Path) -> Path:
    """Write rows as JSON Lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _short(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(prompt, answer) for prompt, answer in pairs if len(prompt) <= SHORT]


def _objects(file: Path) -> list[dict]:
    if not file.is_file():
        raise ConfigError(f"{file} is missing: give the folder that holds {file.name} by --data")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


FOLDER = RUNS / "row_selection_smollm2"
PLAIN = "plain"
PROBE_SET = "refusal"
ROW = "row"  # column of a row\'s place in the data set, for strategies that need it
Evaluation = tuple[tuple[float, float], dict[str, float]]  # (mean margin, score), losses


@dataclass(frozen=True)
class Run:
    """Results of one run.

    Attributes:
        margins, scores: of refusal before and after, on unseen probes.
        losses: on held-out rows by category, before and after, in nats a response token.
        taken: learned rows, by category.
        seconds: processor time of training, including the selector's start.
    """

    method: str
    seed: int
    margins: tuple[float, float]
    scores: tuple[float, float]
    losses: dict[str, tuple[float, float]]
    taken: dict[str, int]
    seconds: float

    @property
    def task(self) -> tuple[float, float]:
        """Mean loss over categories, before and after."""
        before, after = np.mean([self.losses[name] for name in CATEGORIES], axis=0)
        return float(before), float(after)


def digest_of(plan: Plan, data: Path) -> str:
    """Hash the terms and the rows."""
    rows = mixed(data, plan.taught, plan.held_out)
    terms = json.dumps([plan.model_dump(mode="json"), *rows])
    return hashlib.sha256(terms.encode()).hexdigest()[:8]


@cached("row_selection_smollm2/{method}-{seed}-{steps}-{digest}.json")
def simulate(method: str, seed: int, steps: int, digest: str, plan: Plan, data: Path) -> Run:
    """Train with one method.

    Args:
        digest: see `digest_of`.
        data: folder of the public data sets.
    """
    taught, held_out = mixed(data, plan.taught, plan.held_out)
    config = watch_config(plan, seed, steps)
    model, tokenizer = load_model(config.model)
    protected, unseen = probes(model, tokenizer, plan)
    callbacks: list[TrainerCallback] = []
    selector = None
    needs = frozenset() if method == PLAIN else get_strategy(method).all_needs
    row_id = ROW if "category" in needs else None
    if method != PLAIN:
        behaviors = [protected] if "harm" in needs else []
        selector = Selector(method, plan.ratio, behaviors=behaviors, seed=seed, row_id=row_id)
        callbacks.append(SelectionCallback(selector))
    torch.manual_seed(seed)  # the adapter's weights are random
    trainer = SFTTrainer(
        model=model,
        args=sft_config(config),
        train_dataset=_dataset(taught, "taught"),
        eval_dataset={
            name: _dataset([row for row in held_out if row["category"] == name], name)
            for name in CATEGORIES
        },
        processing_class=tokenizer,
        peft_config=lora_config(config.lora),
        callbacks=callbacks,
    )
    before = _at_start(digest, unseen, trainer)
    by_tokens = categories(trainer.train_dataset)
    if selector is not None and row_id is not None:
        selector.categories = dict(enumerate(by_tokens.values()))
    collator = CategoryRecorder(trainer.data_collator, by_tokens, row_id is not None)
    trainer.data_collator = collator
    began = time.process_time()
    trainer.train()
    seconds = time.process_time() - began
    trainer.data_collator = collator.inner
    after = _evaluate(unseen, trainer)
    return Run(
        method,
        seed,
        (before[0][0], after[0][0]),
        (before[0][1], after[0][1]),
        {name: (before[1][name], after[1][name]) for name in CATEGORIES},
        learned_rows(collator.batches[:steps], selector),
        seconds,
    )


@cached("row_selection_smollm2/start-{digest}.json")
def _at_start(digest: str, unseen: Behavior, trainer: SFTTrainer) -> Evaluation:
    """Evaluate the start once: the adapter's B is 0, so all runs start from the base model."""
    return _evaluate(unseen, trainer)


def _evaluate(unseen: Behavior, trainer: SFTTrainer) -> Evaluation:
    model: Any = trainer.model
    margins = evaluation.evaluate(unseen, model).margins
    metrics = trainer.evaluate()
    losses = {name: metrics[f"eval_{name}_loss"] for name in CATEGORIES}
    return (float(margins.mean()), score(margins)), losses


def watch_config(plan: Plan, seed: int, steps: int) -> WatchConfig:
    """Return the configuration with which `riprap watch` would train."""
    training = {
        "max_steps": steps,
        "per_device_train_batch_size": plan.batch,
        "learning_rate": plan.learning_rate,
        "max_length": plan.max_length,
        "seed": seed,
    }
    return WatchConfig.parse(
        {
            "model": str(REFUSING),
            "data": {"path": str(FOLDER / "taught.jsonl")},
            "training": training,
            "lora": {"rank": plan.rank, "alpha": 2 * plan.rank},
            "behaviors": [{"probe_set": PROBE_SET}],
            "run_dir": str(FOLDER / "trainer"),
        },
        "row_selection_smollm2",
    )


def probes(model: nn.Module, tokenizer: Any, plan: Plan) -> tuple[Behavior, Behavior]:
    """Split the probes that the starting model passes: for least_harm, and unseen ones."""
    full = load_refusals(PROBE_SET, tokenizer)
    order = np.random.default_rng(0).permutation(passing(full, model)).tolist()
    border = plan.protected
    return full.subset(order[:border]), full.subset(order[border : border + plan.unseen])


def _dataset(rows: Mixed, name: str) -> Any:
    """Return the rows as a data set, with their categories in a column that training ignores."""
    file = write(rows, FOLDER / f"{name}-{os.getpid()}.jsonl")
    data = load_rows(DataConfig(path=str(file)))
    return data.add_column("category", [row["category"] for row in rows])


def categories(rows: Any) -> dict[tuple[int, ...], str]:
    """Return the category of each row by its tokens, which the collator receives."""
    return {tuple(row["input_ids"]): row["category"] for row in rows}


class CategoryRecorder:
    """A collator that records the categories of each batch.

    Args:
        by_tokens: category of each row by its tokens, in the order of the data set.
        name_rows: add a column with each row's place in the data set.
    """

    def __init__(
        self, inner: Any, by_tokens: dict[tuple[int, ...], str], name_rows: bool = False
    ) -> None:
        self.inner, self._by_tokens, self._name_rows = inner, by_tokens, name_rows
        self._places = {tokens: place for place, tokens in enumerate(by_tokens)}
        self.batches: list[list[str]] = []

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Any:
        """Collate a batch and record its categories."""
        tokens = [tuple(one["input_ids"]) for one in examples]
        self.batches.append([self._by_tokens[own] for own in tokens])
        batch = self.inner(examples)
        if self._name_rows:
            batch[ROW] = torch.tensor([self._places[own] for own in tokens])
        return batch


def learned_rows(batches: list[list[str]], selector: Selector | None) -> dict[str, int]:
    """Count learned rows by category; without a selector all rows."""
    if selector is None:
        counts = Counter(name for batch in batches for name in batch)
    else:
        names = selector.categories
        pairs = zip(batches, selector.history, strict=True)
        counts = Counter(
            batch[row] if names is None else names[row]
            for batch, record in pairs
            for row in record.rows
        )
    return {name: counts[name] for name in CATEGORIES}
