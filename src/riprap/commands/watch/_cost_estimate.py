"""What a monitor will cost a configured run: measured on its own steps, before it is begun."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from trl import SFTTrainer

from riprap.commands.watch._config import WatchConfig
from riprap.commands.watch._resume import refuse_taken
from riprap.commands.watch._run import prepare
from riprap.monitor import Cost, measure

ROUNDS, PATIENCE = 5, 60.0  # seconds, after which a round is the last
LIMIT = 1.10  # time with a monitor over time without, above which there is advice
SLOWLY = 1e-3  # of the learning rate: what the steps do to the model is not part of the cost
CADENCES = (1, 2, 5)  # times the configured `every`
RARER = (2, 3, 4, 5, 8, 10, 20, 50)
LONGER = (2, 3, 4, 5, 8, 10, 20, 50)


def dry_run(config: WatchConfig, quiet: bool = False) -> dict[str, Any]:
    """Measure what the monitor costs, on 5 to 21 steps of the configured training.

    The model is trained in memory only, and nothing is left on disk.

    Args:
        quiet: draw the progress bar on standard error.

    Returns:
        `steps`, `every`; `seconds` by part; `kept_megabytes`; `cadences`, each with its `every`,
        the ratio of time with a monitor to time without over the whole `run` and once `calm`;
        `ratio`, that of the configured run; `advice`, a sentence or None.

    Raises:
        RiprapError: whatever the run itself would be refused for.
    """
    refuse_taken(config.run)
    console = Console(file=sys.stderr) if quiet else Console()
    with (
        tempfile.TemporaryDirectory(prefix="riprap-dry-run-") as folder,
        Progress(console=console, transient=True) as progress,
    ):
        bar = progress.add_task("loading", total=None)
        run = prepare(_harmless(config, Path(folder) / "run"))
        try:
            model, optimizer, step = stepper(run.trainer())
            progress.update(bar, description="measuring", total=ROUNDS)
            advance = partial(progress.advance, bar)
            cost = measure(run.monitor, model, optimizer, step, ROUNDS, advance, patience=PATIENCE)
        finally:
            run.monitor.record.close()
    return summary(cost, config.every, config.training.steps)


def _harmless(config: WatchConfig, folder: Path) -> WatchConfig:
    """The same run elsewhere, and hardly moving: no behaviour is to come near its break in it.

    It has a record, for writing that is part of the cost.
    """
    rate = SLOWLY * config.training.learning_rate
    training = config.training.model_copy(update={"learning_rate": rate, "save_every": None})
    return config.model_copy(update={"run": folder, "training": training})


def stepper(trainer: SFTTrainer) -> tuple[Any, Any, Callable[[], None]]:
    """The trainer's model, its optimizer, and a function that takes one step as it would."""
    trainer.create_optimizer_and_scheduler(num_training_steps=trainer.args.max_steps)
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.optimizer, schedule = optimizer, trainer.lr_scheduler
    assert schedule is not None
    steps = _twice(_batches(trainer))

    def step() -> None:
        batches, items = next(steps)
        trainer.current_gradient_accumulation_steps = len(batches)
        for batch in batches:
            trainer.training_step(model, batch, items)
        if trainer.args.max_grad_norm > 0:
            trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        optimizer.step()
        schedule.step()
        model.zero_grad()

    return model, optimizer, step


def _batches(trainer: SFTTrainer) -> Iterator[tuple[list[Any], Any]]:
    """The batches of one optimizer step after another, without end; the number of their tokens."""
    loader = trainer.get_train_dataloader()
    count = min(trainer.args.gradient_accumulation_steps, len(loader))

    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    source = endless()
    while True:
        yield trainer.get_batch_samples(source, count, trainer.args.device)


def _twice(items: Iterator[Any]) -> Iterator[Any]:
    """The first item once, to warm up with, and then each twice.

    `measure` takes a step with its hooks and one without in turn: where both see the same rows, the
    rows' lengths do not come into the difference.
    """
    yield next(items)
    for item in items:
        yield item
        yield item


def summary(cost: Cost, every: int, steps: int) -> dict[str, Any]:
    """What `dry_run` returns, from the parts."""
    return {
        "steps": steps,
        "every": every,
        "seconds": {
            name: getattr(cost, name) for name in ("step", "hooks", "forward", "gradients", "start")
        },
        "kept_megabytes": cost.kept_bytes / 1e6,
        "cadences": [
            {"every": e, "run": cost.run(e, steps), "calm": cost.calm(e)}
            for e in (every * factor for factor in CADENCES)
        ],
        "ratio": cost.run(every, steps),
        "advice": advice(cost, every, steps),
    }


def advice(cost: Cost, every: int, steps: int) -> str | None:
    """One sentence on how to come within `LIMIT`; None where the run is there already."""
    ratio = cost.run(every, steps)
    if ratio <= LIMIT:
        return None
    found = f"the run would take {ratio:.2f} times as long as without a monitor"
    for rarer in (every * factor for factor in RARER):
        if cost.run(rarer, steps) <= LIMIT:
            return f"{found}; with `every: {rarer}` it stays within {LIMIT:.2f}"
    fewer = _share_of_probes(cost, every, steps)
    probes = "" if fewer is None else f"about {fewer:.0%} of the probes (`n`)"
    for longer in (steps * factor for factor in LONGER):
        if cost.run(every, longer) <= LIMIT:
            return (
                f"{found}, for the visits at the start weigh on so short a run; {longer} steps "
                f"stay within {LIMIT:.2f}" + (f", and so do {probes}" if probes else "")
            )
    if probes:
        return f"{found}; with {probes} it stays within {LIMIT:.2f}"
    return (
        f"{found}, and {cost.hooks / cost.step:.0%} is added at each step whatever the cadence: "
        "watch fewer behaviours, or take larger steps (`batch`, `accumulate`)"
    )


def _share_of_probes(cost: Cost, every: int, steps: int) -> float | None:
    """The share of the probes with which the run stays within `LIMIT`; None: not with any.

    A visit's time is taken to be proportional to the number of probes.
    """
    hooks = replace(cost, start=0.0, forward=0.0, gradients=0.0).run(every, steps)
    if hooks >= LIMIT:
        return None
    share = (LIMIT - hooks) / (cost.run(every, steps) - hooks)
    return share if share >= 0.01 else None


def show(found: dict[str, Any], console: Console) -> None:
    """Print what `dry_run` returns, for people."""
    meaning = {
        "step": "a training step without a monitor",
        "hooks": "added to each step",
        "forward": "a visit to the probes by forward passes",
        "gradients": "a visit that takes gradients as well",
        "start": "the visit before the first step",
    }
    parts = Table("part", title="What the monitor costs", title_justify="left")
    parts.add_column("seconds", justify="right")
    for name, seconds in found["seconds"].items():
        parts.add_row(meaning[name], f"{seconds:.4f}")
    parts.add_section()
    parts.add_row("kept gradients and parameters, MB", f"{found['kept_megabytes']:.1f}")
    ratios = Table("every", title="Time with a monitor ÷ time without", title_justify="left")
    ratios.add_column(f"over {found['steps']} steps", justify="right")
    ratios.add_column("once calm", justify="right")
    for row in found["cadences"]:
        ratios.add_row(str(row["every"]), f"{row['run']:.3f}", f"{row['calm']:.3f}")
    console.print(parts)
    console.print(ratios)
    if found["advice"] is not None:
        console.print(found["advice"][0].upper() + found["advice"][1:] + ".", soft_wrap=True)
