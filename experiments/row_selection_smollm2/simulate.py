"""One run of the real model on the mixed rows, its batches thinned by one strategy."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback
from trl import SFTTrainer

from experiments.row_selection_smollm2.plan import Plan
from experiments.row_selection_smollm2.rows import CATEGORIES, Mixed, write
from experiments.smollm2.rows import REFUSAL_PREFIX
from riprap import evaluation as probing
from riprap.behaviors import Behavior, probe_sets
from riprap.commands.watch import (
    DataConfig,
    WatchConfig,
    load_model,
    load_rows,
    lora_config,
    sft_config,
)
from riprap.detectors import score
from riprap.integrations.hf import SelectionCallback
from riprap.integrations.smollm2 import REFUSING
from riprap.selection import Selector

RUNS = Path("runs/chosen")
PLAIN = "plain"
PACK = "refusal"


@dataclass(frozen=True)
class Run:
    """What came of one run.

    Attributes:
        margins, scores: of refusal before and after, on probes that nobody was given.
        losses: nats a response token on rows that were not taught, by category, before and after.
        taken: rows learned from, by category.
        seconds: processor time of training, the selector's start included.
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
        """Mean of the losses over categories, before and after."""
        before, after = np.mean([self.losses[name] for name in CATEGORIES], axis=0)
        return float(before), float(after)


def simulate(method: str, seed: int, plan: Plan, steps: int, taught: Mixed, held_out: Mixed) -> Run:
    """Make a run, or read it where it was made before."""
    terms = json.dumps([plan.model_dump(mode="json"), taught, held_out])
    digest = hashlib.sha256(terms.encode()).hexdigest()[:8]  # runs on other terms are not these
    file = RUNS / f"{method}-{seed}-{steps}-{digest}.json"
    if file.exists():
        return Run(**json.loads(file.read_text()))
    torch.set_num_threads(1)
    start = RUNS / f"start-{digest}.json"
    run = _train(method, seed, plan, steps, taught, held_out, start)
    _keep(file, asdict(run))
    return run


def _keep(file: Path, found: Any) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(found))
    partial.rename(file)


def _train(
    method: str, seed: int, plan: Plan, steps: int, taught: Mixed, held_out: Mixed, start: Path
) -> Run:
    config = configured(plan, seed, steps)
    model, tokenizer = load_model(config.model)
    protected, unseen = probes(model, tokenizer, plan)
    callbacks: list[TrainerCallback] = []
    selector = None
    if method != PLAIN:
        behaviors = [protected] if method == "least_harm" else []
        selector = Selector(method, plan.ratio, behaviors=behaviors, seed=seed)
        callbacks.append(SelectionCallback(selector))
    torch.manual_seed(seed)  # the adapter's weights are random
    trainer = SFTTrainer(
        model=model,
        args=sft_config(config),
        train_dataset=_dataset(taught, "taught"),
        eval_dataset={name: _dataset(_of(held_out, name), name) for name in CATEGORIES},
        processing_class=tokenizer,
        peft_config=lora_config(config),
        callbacks=callbacks,
    )
    trained: Any = trainer.model
    if not start.exists():  # the adapter's B is 0, so that all runs start from the base model
        _keep(start, [_look(unseen, trained), _losses(trainer)])
    before = json.loads(start.read_text())
    noted = Noted(trainer.data_collator, kinds(trainer.train_dataset))
    trainer.data_collator = noted
    began = time.process_time()
    trainer.train()
    seconds = time.process_time() - began
    trainer.data_collator = noted.inner
    after = _look(unseen, trained), _losses(trainer)
    return Run(
        method,
        seed,
        (before[0][0], after[0][0]),
        (before[0][1], after[0][1]),
        {name: (before[1][name], after[1][name]) for name in CATEGORIES},
        taken_of(noted.batches[:steps], selector),
        seconds,
    )


def configured(plan: Plan, seed: int, steps: int) -> WatchConfig:
    """The run as `riprap watch` would be asked for it."""
    training = {"steps": steps, "batch": plan.batch, "learning_rate": plan.learning_rate}
    return WatchConfig.parse(
        {
            "model": str(REFUSING),
            "data": {"path": str(RUNS / "taught.jsonl")},
            "training": training | {"max_length": plan.max_length, "seed": seed},
            "lora": {"rank": plan.rank, "alpha": 2 * plan.rank},
            "behaviors": [{"pack": PACK}],
            "run": str(RUNS / "trainer"),
        },
        "study chosen",
    )


def probes(model: nn.Module, tokenizer: Any, plan: Plan) -> tuple[Behavior, Behavior]:
    """Probes that the starting model passes: those for least_harm, and those that nobody sees."""
    full = probe_sets.load(PACK, tokenizer, prefixes=[REFUSAL_PREFIX])
    file = RUNS / "passing.json"
    if not file.exists():
        margins = probing.evaluate(full, model).margins
        file.write_text(json.dumps(np.flatnonzero(margins > 0).tolist()))
    passing = json.loads(file.read_text())
    order = np.random.default_rng(0).permutation(passing).tolist()
    border = plan.protected
    return full.subset(order[:border]), full.subset(order[border : border + plan.unseen])


def _of(rows: Mixed, category: str) -> Mixed:
    return [row for row in rows if row["category"] == category]


def _dataset(rows: Mixed, name: str) -> Any:
    """The rows as the trainer wants them, with a column that it passes over."""
    file = write(rows, RUNS / f"{name}.jsonl")
    data = load_rows(DataConfig(path=str(file)))
    return data.add_column("category", [row["category"] for row in rows])


def _look(behavior: Behavior, model: nn.Module) -> tuple[float, float]:
    margins = probing.evaluate(behavior, model).margins
    return float(margins.mean()), score(margins)


def _losses(trainer: SFTTrainer) -> dict[str, float]:
    found = trainer.evaluate()
    return {name: found[f"eval_{name}_loss"] for name in CATEGORIES}


def kinds(rows: Any) -> dict[tuple[int, ...], str]:
    """The category of each row by its tokens, which are what the collator is given."""
    return {tuple(row["input_ids"]): row["category"] for row in rows}


class Noted:
    """A collator that notes the categories of each batch."""

    def __init__(self, inner: Any, kinds: dict[tuple[int, ...], str]) -> None:
        self.inner, self._kinds = inner, kinds
        self.batches: list[list[str]] = []

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Any:
        """Collate."""
        self.batches.append([self._kinds[tuple(one["input_ids"])] for one in examples])
        return self.inner(examples)


def taken_of(batches: list[list[str]], selector: Selector | None) -> dict[str, int]:
    """Rows learned from by category; all of them without a selector."""
    if selector is None:
        found = Counter(name for batch in batches for name in batch)
    else:
        pairs = zip(batches, selector.history, strict=True)
        found = Counter(batch[row] for batch, taken in pairs for row in taken.rows)
    return {name: found[name] for name in CATEGORIES}
