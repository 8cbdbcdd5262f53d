"""Cost of the monitor for a configured run, measured on a few of its steps before it starts."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from trl import SFTTrainer

from riprap.commands._encoding import print_data
from riprap.commands.watch._config import WatchConfig
from riprap.commands.watch._resume import require_empty_run_dir
from riprap.commands.watch._run import planned_steps, prepare
from riprap.monitor import Cost, measure_cost

ROUNDS, MAX_SECONDS = 5, 60.0  # no further round starts after so many seconds
MAX_RATIO = 1.10  # time with a monitor ÷ time without, above which there is advice
LR_FACTOR = 1e-3  # measured steps must hardly change the model
CADENCE_FACTORS = (1, 2, 5)  # multiples of the configured `probe_every`
ADVICE_FACTORS = (2, 3, 4, 5, 8, 10, 20, 50)  # multiples of `probe_every` or of the run's length


def estimate_cost(config: WatchConfig, quiet: bool = False) -> dict[str, Any]:
    """Measure the cost of the monitor, on 5 to 21 steps of the configured training.

    The model is trained in memory only, and nothing is left on disk.

    Returns:
        `steps`, `probe_every`; `seconds` by part; `memory_megabytes`; `cadences`, each with its
        `probe_every`, and the ratio of time with a monitor to time without over the whole `run`
        and once `calm`; `ratio`, that of the configured run; `budget`, and the `evaluations` that
        it pays for, gradient `refreshes` among them; `advice`, a sentence or None.

    Raises:
        RiprapError: the run itself would be refused for the same reason.
    """
    require_empty_run_dir(config.run_dir, "watch")
    console = Console(file=sys.stderr) if quiet else Console()
    with (
        tempfile.TemporaryDirectory(prefix="riprap-dry-run-") as folder,
        Progress(console=console, transient=True) as progress,
    ):
        bar = progress.add_task("loading", total=None)
        run = prepare(_with_tiny_lr(config, Path(folder) / "run"))
        try:
            trainer = run.make_trainer()
            steps = planned_steps(trainer)
            model, optimizer, take_step = make_step_fn(trainer)
            progress.update(bar, description="measuring", total=ROUNDS)
            advance = partial(progress.advance, bar)
            cost = measure_cost(
                run.monitor, model, optimizer, take_step, ROUNDS, advance, max_seconds=MAX_SECONDS
            )
        finally:
            run.monitor.record.close()
    data = {"path": config.data.path, "notes": run.notes, "row": run.shown}
    budget = run.monitor.budget
    return summarize_cost(cost, config.probe_every, steps, budget) | {"data": data}


def _with_tiny_lr(config: WatchConfig, folder: Path) -> WatchConfig:
    """Configure the same run in another folder, with steps so small that no behavior breaks.

    It has a record because writing it is a part of the cost.
    """
    rate = LR_FACTOR * config.training.learning_rate
    training = config.training.model_copy(update={"learning_rate": rate, "save_steps": None})
    return config.model_copy(update={"run_dir": folder, "training": training})


def make_step_fn(trainer: SFTTrainer) -> tuple[Any, Any, Callable[[], None]]:
    """Return the trainer's model, its optimizer, and a function that takes one training step."""
    trainer.create_optimizer_and_scheduler(num_training_steps=planned_steps(trainer))
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.optimizer, scheduler = optimizer, trainer.lr_scheduler
    assert scheduler is not None
    batches_of_steps = _each_twice(_batches(trainer))

    def take_step() -> None:
        batches, items = next(batches_of_steps)
        trainer.current_gradient_accumulation_steps = len(batches)
        for batch in batches:
            trainer.training_step(model, batch, items)
        if trainer.args.max_grad_norm > 0:
            trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        optimizer.step()
        scheduler.step()
        model.zero_grad()

    return model, optimizer, take_step


def _batches(trainer: SFTTrainer) -> Iterator[tuple[list[Any], Any]]:
    """Yield the batches of each optimizer step with the number of their tokens, endlessly."""
    loader = trainer.get_train_dataloader()
    count = min(trainer.args.gradient_accumulation_steps, len(loader))
    source = chain.from_iterable(repeat(loader))
    while True:
        yield trainer.get_batch_samples(source, count, trainer.args.device)


def _each_twice(items: Iterator[Any]) -> Iterator[Any]:
    """Yield the first item once, for the warm-up, and every other item twice.

    `measure_cost` alternates steps with hooks and steps without; both must see the same rows, or
    the length of the rows would be a part of the difference.
    """
    yield next(items)
    for item in items:
        yield item
        yield item


def summarize_cost(
    cost: Cost, probe_every: int, steps: int, budget: float | None = None
) -> dict[str, Any]:
    """Compute the result of `estimate_cost` from the measured parts."""
    planned = cost.plan(probe_every, steps, budget)
    seconds = {
        "step": cost.step_seconds,
        "hooks": cost.hook_seconds,
        "reading": cost.reading_seconds,
        "forward": cost.forward_seconds,
        "gradients": cost.refresh_seconds,
        "start": cost.start_seconds,
    }
    return {
        "steps": steps,
        "probe_every": probe_every,
        "seconds": seconds,
        "memory_megabytes": cost.memory_bytes / 1e6,
        "cadences": [
            {
                "probe_every": n,
                "run": cost.run_ratio(n, steps, budget),
                "calm": cost.calm_ratio(n, budget),
            }
            for n in (probe_every * factor for factor in CADENCE_FACTORS)
        ],
        "ratio": cost.run_ratio(probe_every, steps, budget),
        "budget": budget,
        "evaluations": planned.evaluations,
        "refreshes": planned.refreshes,
        "advice": advice(cost, probe_every, steps, budget),
    }


def advice(cost: Cost, probe_every: int, steps: int, budget: float | None = None) -> str | None:
    """Suggest how to reduce the ratio to `MAX_RATIO`; None if it is not above that."""
    ratio = cost.run_ratio(probe_every, steps, budget)
    if ratio <= MAX_RATIO:
        return None
    text = f"the run would take {ratio:.2f} times as long as without a monitor"
    for interval in (probe_every * factor for factor in ADVICE_FACTORS):
        if cost.run_ratio(interval, steps, budget) <= MAX_RATIO:
            return f"{text}; with `probe_every: {interval}` it stays within {MAX_RATIO:.2f}"
    share = _share_of_probes(cost, probe_every, steps, budget)
    probes = "" if share is None else f"about {share:.0%} of the probes (`n_probes`)"
    for longer in (steps * factor for factor in ADVICE_FACTORS):
        if cost.run_ratio(probe_every, longer, budget) <= MAX_RATIO:
            return (
                f"{text}, because the evaluations at the start are a large part of so short a run; "
                f"a run of {longer} steps stays within {MAX_RATIO:.2f}"
                + (f", and so does one with {probes}" if probes else "")
            )
    if probes:
        return f"{text}; with {probes} it stays within {MAX_RATIO:.2f}"
    share_of_hooks = cost.hook_seconds / cost.step_seconds
    return (
        f"{text}, and the hooks alone add {share_of_hooks:.0%} to each step: monitor fewer "
        "behaviors, or take larger steps (`per_device_train_batch_size`, "
        "`gradient_accumulation_steps`)"
    )


def _share_of_probes(
    cost: Cost, probe_every: int, steps: int, budget: float | None
) -> float | None:
    """Share of the probes with which the run stays within `MAX_RATIO`; None: no share suffices.

    The time of a probe evaluation is assumed to be proportional to the number of probes.
    """
    free_probes = replace(cost, start_seconds=0.0, forward_seconds=0.0, refresh_seconds=0.0)
    hooks = free_probes.run_ratio(probe_every, steps, budget)
    if hooks >= MAX_RATIO:
        return None
    share = (MAX_RATIO - hooks) / (cost.run_ratio(probe_every, steps, budget) - hooks)
    return share if share >= 0.01 else None


def planned_text(result: dict[str, Any]) -> str:
    """Return what the monitor of the configured run will do, and what that costs."""
    budget = result["budget"]
    limit = "no budget" if budget is None else f"a budget of {budget:.1%}"
    forward = result["evaluations"] - result["refreshes"]
    return (
        f"Planned with {limit}: {result['ratio'] - 1:.1%} of the training time for the first "
        f"evaluation, {forward} by forward passes and {result['refreshes']} with gradients; more "
        "if a behavior is about to break."
    )


def print_cost(result: dict[str, Any], console: Console) -> None:
    """Print the result of `estimate_cost` as tables."""
    meaning = {
        "step": "training step without a monitor",
        "hooks": "added to each step",
        "reading": "reading of the interference",
        "forward": "evaluation by forward passes",
        "gradients": "evaluation with gradients",
        "start": "evaluation before the first step",
    }
    parts = Table("part", title="Cost of the monitor", title_justify="left")
    parts.add_column("seconds", justify="right")
    for name, seconds in result["seconds"].items():
        parts.add_row(meaning[name], f"{seconds:.4f}")
    parts.add_section()
    parts.add_row("stored gradients and parameters, MB", f"{result['memory_megabytes']:.1f}")
    ratios = Table("probe_every", title="Time with a monitor ÷ time without", title_justify="left")
    ratios.add_column(f"over {result['steps']} steps", justify="right")
    ratios.add_column("once calm", justify="right")
    for row in result["cadences"]:
        ratios.add_row(str(row["probe_every"]), f"{row['run']:.3f}", f"{row['calm']:.3f}")
    data = result.get("data")
    if data is not None:
        print_data(data["path"], data["notes"], data["row"], console)
    console.print(parts)
    console.print(ratios)
    console.print(planned_text(result), soft_wrap=True)
    if result["advice"] is not None:
        console.print(result["advice"][0].upper() + result["advice"][1:] + ".", soft_wrap=True)
