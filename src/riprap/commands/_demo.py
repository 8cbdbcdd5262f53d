"""`riprap demo`: a page with recorded runs, and a run of its own that appears on it."""

from __future__ import annotations

import datetime
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from riprap._extras import EXTRAS, is_installed
from riprap.commands._live import CommandTable, summarize_run
from riprap.monitor import Monitor
from riprap.toy import STORIES, ToyWorld, stories_digest, unpack_stories

STEPS = 200
STORY_FOLDER = "demo-stories"  # inside the folder of runs; a digest of the stories follows
START_SECONDS, STOP_SECONDS = 60.0, 10.0  # that the page may take


def demo_folder(runs: Path) -> Path:
    """Return the folder of a new run of the demo, in the folder of runs."""
    return runs / f"demo-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def run_demo(seed: int, run_dir: Path, quiet: bool = False) -> dict[str, Any]:
    """Pretrain the toy model unless it is cached, then monitor it while it learns multiplication.

    Return the summary of the run, and the new task's accuracy.
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
    metadata = {"task": "Your own run: a toy model learns multiplication", "seed": seed}
    behaviors = world.displayed(world.behaviors())
    # Without a budget: the same readings on each machine.
    monitor = Monitor(
        behaviors, run_dir=run_dir, metadata=metadata, budget=None, trackers=[CommandTable(quiet)]
    )
    optimizer = world.optimizer(model)
    with monitor.watch(model, optimizer, steps=STEPS):
        world.train(model, optimizer, "C", seed, STEPS, monitor)
    return summarize_run(monitor, run_dir) | {"new_task_accuracy": world.evaluate(model, "C")}


@contextmanager
def demo_page(run_dir: Path, console: Console) -> Iterator[str | None]:
    """Serve a page of the recorded stories and of the run that will be in `run_dir`.

    Yields its address; None without the extra `dashboard`, which is said then.
    """
    stories = run_dir.parent / f"{STORY_FOLDER}-{stories_digest()}"
    unpack_stories(stories)
    run_dir.mkdir(parents=True, exist_ok=True)
    console.print("Three recorded trainings, and one that begins now:")
    for title in STORIES.values():
        console.print(f"  {title}", highlight=False)
    if not all(map(is_installed, EXTRAS["dashboard"])):
        text = f"to look at them: pip install 'riprap[dashboard]', riprap dashboard {stories}"
        console.print(f"{text}\n", markup=False, highlight=False, soft_wrap=True)
        yield None
        return
    command = [sys.executable, "-m", "riprap", "dashboard", str(stories), str(run_dir)]
    # A process of its own: the page answers while this one trains.
    page = subprocess.Popen(
        [*command, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        address = _first_line(page).partition("live page: ")[2].strip() or None
        if address is not None:
            address += f"?show={len(STORIES) + 1}"  # all runs, where a page shows two at first
        if address is None:
            console.print("The page did not start; the training goes on without it.\n")
        else:
            console.print(f"Look at them: {address}\n", highlight=False, soft_wrap=True)
        yield address
    finally:
        page.terminate()
        try:
            page.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            page.kill()
            page.wait()
        if page.stdout is not None:
            page.stdout.close()


def _first_line(page: subprocess.Popen[str]) -> str:
    """Return the first line that a process prints; empty: it ended, or takes too long."""
    lines: queue.Queue[str] = queue.Queue()
    if page.stdout is not None:
        read = page.stdout.readline
        threading.Thread(target=lambda: lines.put(read()), daemon=True).start()
    try:
        return lines.get(timeout=START_SECONDS)
    except queue.Empty:
        return ""
