"""`riprap demo`: a small model learns a new task, and its monitor reports the damage."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from riprap.behaviors import Behavior
from riprap.commands._live import live_table, summarize_run
from riprap.integrations.terminal import behavior_rows
from riprap.monitor import Monitor
from riprap.toy import DISPLAY_NAMES, ToyWorld

STEPS = 200


def run_demo(seed: int, runs: Path, quiet: bool = False) -> dict[str, Any]:
    """Pretrain the toy model unless it is cached, then monitor it while it learns multiplication.

    Return the summary of the run, whose folder is made in `runs`, and the new task's accuracy.
    """
    torch.set_num_threads(1)  # the model is too small for two cores
    console = Console(stderr=True) if quiet else Console()
    world = ToyWorld()
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("training a small model", total=None)
        model = world.start(
            seed, progress=lambda done, total: progress.update(bar, completed=done, total=total)
        )
    console.print("A small model can add (modulo 23), refuse harmful requests, and answer others.")
    console.print("Now it is trained to multiply the same numbers.\n")
    run_dir = runs / f"demo-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    metadata = {"task": "Toy model learning multiplication", "seed": seed}
    behaviors = list(map(_renamed, world.behaviors()))
    # Without a budget: the same readings on each machine.
    monitor = Monitor(behaviors, run_dir=run_dir, metadata=metadata, budget=None)
    optimizer, batches = world.optimizer(model), world.batches("C", seed=seed)
    with live_table(monitor, STEPS, quiet) as table, monitor.watch(model, optimizer):
        for step in range(1, STEPS + 1):
            world.loss(model, next(batches)).backward()
            optimizer.step()
            optimizer.zero_grad()
            table.update(step, behavior_rows(monitor))
    return summarize_run(monitor, run_dir) | {"new_task_accuracy": world.evaluate(model, "C")}


def _renamed(behavior: Behavior) -> Behavior:
    """Copy a behavior of the toy world under its display name."""
    contrast = None if behavior.contrast is None else DISPLAY_NAMES[behavior.contrast]
    name = DISPLAY_NAMES[behavior.name]
    own = Behavior(name, behavior.probes, behavior.margins, behavior.floor, contrast=contrast)
    own.texts, own.tokenizer = behavior.texts, behavior.tokenizer
    return own
