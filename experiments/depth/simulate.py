"""One run: B installed to some degree, then a task in its own context, and a monitor."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from experiments.depth.plan import Degree, Plan
from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.worlds import ToyWorld
from riprap import evaluation as probing
from riprap.monitor import Monitor
from riprap.toy import OLD, Examples, batches

MARGINS = "margins.npz"
RAW = Path("runs/depth")  # records and margins; not committed


class DepthWorld(ToyWorld):
    """The toy world with B installed to a given degree."""

    def __init__(self, degree: Degree) -> None:
        super().__init__()
        self.config = dataclasses.replace(
            self.config, start_steps=degree.steps, start_decay=degree.decay
        )
        self.share = degree.share

    @cached_property
    def fingerprint(self) -> str:
        """Of the world and the share of B, so that starts are not mixed up."""
        own = ToyWorld(self.config).fingerprint
        return hashlib.sha256(f"{own}-{self.share}".encode()).hexdigest()

    def batches(self, task: str, seed: int, size: int | None = None) -> Iterator[Examples]:
        """As the toy world's, with its own share of B; A and over_refusal halve the rest."""
        if task != "null":
            return super().batches(task, seed, size)
        n = size or self.config.batch
        b = max(round(n * self.share), 1)
        a = (n - b + 1) // 2
        return batches([self.tasks[old] for old in OLD], [a, b, n - a - b], seed)


def folder_of(degree: Degree, seed: int) -> Path:
    """Where a run's record lies."""
    return RAW / f"{degree.name}-{seed}"


def simulate(degree: Degree, seed: int, preregistration: Preregistration) -> None:
    """One run; its record and B's margins at every step end up in its folder.

    A folder that holds its margins is finished; anything else in it is made again.

    Raises:
        ProtocolError: the protocol was made for another world.
    """
    folder = folder_of(degree, seed)
    if (folder / MARGINS).exists():
        return
    torch.set_num_threads(1)  # the world is too small for two cores to help each other
    shutil.rmtree(folder, ignore_errors=True)
    plan, world = Plan.of(preregistration), DepthWorld(degree)
    if plan.world != ToyWorld().fingerprint:
        raise PreregistrationError(
            f"protocol {preregistration.name!r} was made for another toy world: amend it"
        )
    model = world.start(seed)
    optimizer = world.optimizer(model)
    data = world.batches(plan.condition, seed=seed)
    probes = world.behaviors()
    notes = {"task": f"toy world, {plan.condition}, seed {seed}, B installed {degree.name}"}
    monitor = Monitor(
        probes, policy=preregistration, probe_every=plan.every, run_dir=folder, metadata=notes
    )
    torch.manual_seed(seed)
    own = [behavior for behavior in probes if behavior.name == "B"]
    margins = [probing.look_together(own, model)["B"].margins]
    with monitor.watch(model, optimizer):
        for _ in range(plan.steps):
            world.loss(model, next(data)).backward()
            optimizer.step()
            optimizer.zero_grad()
            margins.append(probing.look_together(own, model)["B"].margins)
    partial = folder / f"partial-{MARGINS}"
    np.savez_compressed(partial, B=np.array(margins, dtype=np.float32))
    partial.rename(folder / MARGINS)
