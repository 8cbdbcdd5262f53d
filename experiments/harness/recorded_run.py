"""Monitored training runs on a toy world, with the margins of every step beside the record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from experiments.worlds import ToyWorld
from riprap import evaluation
from riprap.behaviors import Behavior
from riprap.detectors import AlertPolicy, BehaviorHistory, history_from_record, score
from riprap.monitor import Monitor
from riprap.record import Reader
from riprap.signals import Signal, per_step
from riprap.types import Alert, Reading


class MarginTracker:
    """Records the margins of all probes before training and after every step."""

    def __init__(self, model: nn.Module, behaviors: Sequence[Behavior]) -> None:
        self.model, self.behaviors = model, list(behaviors)
        self.margins: dict[str, list[np.ndarray]] = {b.name: [] for b in behaviors}
        self.record_margins()

    def before_step(self) -> None:
        """Do what must precede an optimizer step."""

    def after_step(self) -> None:
        """Record where the step has led."""
        self.record_margins()

    def record_margins(self) -> None:
        """Append the present margins."""
        for name, result in evaluation.evaluate_batch(self.behaviors, self.model).items():
            self.margins[name].append(result.margins)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the margins by behavior, shape (steps + 1, n_probes)."""
        return {n: np.array(values, dtype=np.float32) for n, values in self.margins.items()}


def train_monitored(
    world: ToyWorld,
    task: str,
    seed: int,
    run_dir: Path,
    policy: AlertPolicy,
    *,
    steps: int,
    every: int,
    note: str = "",
    signals: Sequence[Signal] | None = None,
    make_tracker: Callable[[nn.Module, list[Behavior]], MarginTracker] = MarginTracker,
    on_monitor: Callable[[Monitor], object] = lambda _monitor: None,
) -> dict[str, np.ndarray]:
    """Train a start of the world on a new task under a monitor that records into `run_dir`.

    Args:
        every: the monitor's longest gap between probe evaluations, in steps.
        signals: None: `riprap.signals.per_step()`.
        note: appended to the description of the run in its record.
        make_tracker: makes what records beside the monitor.
        on_monitor: called with the monitor before training.

    Returns:
        the arrays of the tracker.
    """
    model = world.start(seed)
    optimizer, batches = world.optimizer(model), world.batches(task, seed=seed)
    behaviors = world.behaviors()
    monitor = Monitor(
        behaviors,
        policy=policy,
        probe_every=every,
        run_dir=run_dir,
        signals=per_step() if signals is None else signals,
        metadata={"task": f"toy world, {task}, seed {seed}{note}"},
        budget=None,
    )
    on_monitor(monitor)
    torch.manual_seed(seed)
    tracker = make_tracker(model, behaviors)
    with monitor.watch(model, optimizer):
        for _ in range(steps):
            tracker.before_step()
            world.loss(model, next(batches)).backward()
            optimizer.step()
            optimizer.zero_grad()
            tracker.after_step()
    return tracker.arrays()


@dataclass
class RecordedRun:
    """One finished run: its record, and its margins at every step.

    Attributes:
        histories: history of each behavior, as the monitor knew it.
        margins: by behavior, shape (steps + 1, n_probes).
    """

    condition: str
    seed: int
    histories: dict[str, BehaviorHistory]
    alerts: list[Alert]
    margins: dict[str, np.ndarray]

    def broke(self, name: str) -> int | None:
        """Return the first step whose score on the probes was below the floor."""
        floor = self.histories[name].floor
        below = (score(margins) < floor for margins in self.margins[name])
        return next((step for step, hit in enumerate(below) if hit), None)


def read_record(folder: Path) -> tuple[dict[str, BehaviorHistory], list[Alert], list[Reading]]:
    """Return histories by behavior, alerts and readings of a finished run."""
    with Reader(folder) as reader:
        readings = reader.readings()
        floors = {b["name"]: float(b["floor"]) for b in reader.meta()["behaviors"]}
        histories = {
            name: history_from_record(
                name, floor, reader.margins(name), readings, n_behaviors=len(floors)
            )
            for name, floor in floors.items()
        }
        return histories, reader.alerts(), readings
