"""Turn a configuration of `riprap watch` into a training whose effects can be predicted."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from riprap._distributed import unwrap_model, unwrap_optimizer
from riprap.behaviors import Behavior
from riprap.commands._data import Row, read_rows
from riprap.commands._encoding import EncodedRow, Encoder
from riprap.commands.watch import (
    TrainingRun,
    WatchConfig,
    build_guard,
    build_selector,
    check_config,
    make_step_fn,
    planned_steps,
    prepare,
)
from riprap.evaluation import find_layer
from riprap.prediction import Training

Stage = Callable[[str, int, int], None]  # name of a stage, how much is done, of how much


@dataclass
class Prepared:
    """A training, the behaviors that it may break, and what is worth saying about it.

    Attributes:
        rows: the rows to score, in the order of `training.rows`.
        rows_digest: digest of all rows, as the record of the run has it.
        notes: what the data contain, and what the prediction leaves out, in words.
        shown: the first row as stretches of text, and whether they are learned.
    """

    training: Training
    behaviors: list[Behavior]
    rows: list[Row]
    rows_digest: str
    notes: list[str] = field(default_factory=list)
    shown: list[tuple[str, bool]] = field(default_factory=list)


@contextmanager
def prepared(config: WatchConfig, n_rows: int | None, stage: Stage) -> Iterator[Prepared]:
    """Build model, trainer, rows and behaviors in a temporary folder.

    Guard, selector and evaluation data of the configuration are left out, but what `riprap watch`
    would refuse of them is refused here too.

    Args:
        n_rows: number of rows to score, drawn at random; None: all.
        stage: see `riprap.commands.watch.prepare`.
    """
    check_config(config)
    if config.eval_data is not None:
        read_rows(config.eval_data)
    with tempfile.TemporaryDirectory(prefix="riprap-preflight-") as folder:
        plain = {"guard": None, "selector": None, "eval_data": None}
        training = config.training.model_copy(update={"save_steps": None})
        changes = plain | {"run_dir": Path(folder) / "run", "training": training}
        run = prepare(config.model_copy(update=changes), progress=stage)
        try:
            stage("building the trainer", 0, 0)
            yield _make(config, run, n_rows)
        finally:
            run.monitor.record.close()


def _make(config: WatchConfig, run: TrainingRun, n_rows: int | None) -> Prepared:
    notes = list(run.notes)
    trainer = run.make_trainer()
    steps, args = planned_steps(trainer), trainer.args
    wrapped, optimizer, take_step = make_step_fn(trainer)
    model = unwrap_model(wrapped)
    _try_parts(config, model, run.monitor.behaviors)
    scheduler: Any = trainer.lr_scheduler
    schedule = _rates(getattr(scheduler, "scheduler", scheduler), steps)
    if schedule is None:
        notes.append(
            f"the rates of {args.lr_scheduler_type} are not known before: read as constant"
        )
    notes += _left_out(config)
    rows, batches, digest = _draw(config, run.tokenizer, n_rows)
    training = Training(
        model,
        unwrap_optimizer(optimizer),
        take_step,
        np.ones(steps) if schedule is None else schedule,
        batches,
        np.array([row.number for row in rows]),
        len(run.rows),
        args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        max_grad_norm=args.max_grad_norm or None,
    )
    return Prepared(training, list(run.monitor.behaviors), rows, digest, notes, run.shown)


def _try_parts(config: WatchConfig, model: nn.Module, behaviors: list[Behavior]) -> None:
    """Make the parts that the prediction does not use: what is wrong with them is refused."""
    find_layer(model, config.feature_layer)
    build_guard(config, behaviors)
    build_selector(config.selector, behaviors, lambda **record: None)


def _rates(scheduler: Any, steps: int) -> np.ndarray | None:
    """Return the rate of each step, relative to the base rate; None if it depends on the run."""
    if not isinstance(scheduler, LambdaLR):
        return None
    rates = np.array([float(scheduler.lr_lambdas[0](step)) for step in range(steps)])
    return rates if rates.max() > 0 else None


def _left_out(config: WatchConfig) -> list[str]:
    """Say which parts of the configuration the prediction does not follow."""
    notes = []
    for name in ("guard", "selector"):
        if getattr(config, name) is not None:
            notes.append(f"the {name} is left out: the prediction is that of training without it")
    if config.training.passed_on().get("packing"):
        notes.append("rows are scored one by one, though training packs them")
    return notes


def _draw(
    config: WatchConfig, tokenizer: Any, n_rows: int | None
) -> tuple[list[Row], list[dict[str, Tensor]], str]:
    """Draw rows from which the model learns; return them, their batches and the rows' digest.

    Rows of about the same length share a batch, so that little of it is padding.
    """
    training, data = config.training, config.data
    packs = training.passed_on().get("packing")
    encoder = Encoder(tokenizer, None if packs else training.max_length, data.chat_template_kwargs)
    rows, summary = read_rows(data)
    chosen: list[tuple[Row, EncodedRow]] = []
    for at in np.random.default_rng(training.seed).permutation(len(rows)).tolist():
        if len(chosen) == n_rows:
            break
        encoded = encoder.encode(rows[at])
        if encoded.is_learned:
            chosen.append((rows[at], encoded))
    chosen.sort(key=lambda pair: (len(pair[1].ids), pair[0].number))
    size = training.per_device_train_batch_size
    parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    batches = [encoder.batch([encoded for _, encoded in part]) for part in parts]
    return [row for row, _ in chosen], batches, summary.digest
