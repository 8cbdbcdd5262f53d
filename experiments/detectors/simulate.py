"""One real run: a start, a new task, a monitor, and the margins at every single step."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from experiments.detectors.plan import Plan
from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.worlds import ToyWorld
from riprap import evaluation as probing
from riprap import signals
from riprap.monitor import Monitor

MARGINS = "margins.npz"


def simulate(condition: str, seed: int, folder: Path, preregistration: Preregistration) -> None:
    """Run one condition from one seed; the record and the margins end up in `folder`.

    A folder that holds its margins is finished; anything else in it is an interrupted run, and is
    made again.

    Raises:
        ProtocolError: the protocol was made for another world.
    """
    if (folder / MARGINS).exists():
        return
    torch.set_num_threads(1)  # the world is too small for two cores to help each other
    shutil.rmtree(folder, ignore_errors=True)
    plan, world = Plan.of(preregistration), ToyWorld()
    if plan.world != world.fingerprint:
        raise PreregistrationError(
            f"protocol {preregistration.name!r} was made for world {plan.world[:12]}…, this one is "
            f"{world.fingerprint[:12]}…: amend the protocol, with a reason"
        )
    model = world.start(seed)
    optimizer = world.optimizer(model)
    batches = world.batches(condition, seed=seed)
    probes = world.behaviors()
    monitor = Monitor(
        probes,
        policy=preregistration,
        probe_every=plan.every,
        run_dir=folder,
        signals=[*signals.default(), signals.LossCosine(), signals.SpectralEntropy()],
        metadata={"task": f"toy world, {condition}, seed {seed}"},
    )
    torch.manual_seed(seed)
    margins: dict[str, list[np.ndarray]] = {b.name: [] for b in probes}

    def see() -> None:
        for name, look in probing.evaluate_batch(probes, model).items():
            margins[name].append(look.margins)

    see()
    with monitor.watch(model, optimizer):
        for _ in range(plan.steps):
            world.loss(model, next(batches)).backward()
            optimizer.step()
            optimizer.zero_grad()
            see()
    arrays = {name: np.array(values, dtype=np.float32) for name, values in margins.items()}
    partial = folder / f"partial-{MARGINS}"
    np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
    partial.rename(folder / MARGINS)
