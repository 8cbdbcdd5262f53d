"""One run of the toy study: a start, a new task, a monitor, and what really happened."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.toy.plan import Plan
from experiments.toy.tracker import Tracker
from experiments.worlds import ToyWorld
from riprap import signals
from riprap.behaviors import Behavior
from riprap.monitor import Monitor

TRUTH = "truth.npz"


def simulate(condition: str, seed: int, folder: Path, preregistration: Preregistration) -> None:
    """Run one condition from one seed; the record and the truth end up in `folder`.

    A folder that holds its truth is finished; anything else in it is an interrupted run, and is
    made again.

    Raises:
        ProtocolError: the protocol was made for another world.
    """
    if (folder / TRUTH).exists():
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
        signals=read_here(),
        metadata={"task": f"toy world, {condition}, seed {seed}"},
    )
    torch.manual_seed(seed)
    tracker = Tracker(model, probes, held_out(world), plan)
    with monitor.watch(model, optimizer):
        for _ in range(plan.steps):
            tracker.before_step()
            world.loss(model, next(batches)).backward()
            optimizer.step()
            optimizer.zero_grad()
            tracker.after_step()
    tracker.save(folder / TRUTH)


def read_here() -> list[signals.Signal]:
    """The signals that the study was frozen with; later ones would only slow its runs."""
    more = [signals.LossCosine(), signals.FisherCosine(), signals.SpectralEntropy()]
    return [*signals.default(), *more]


def held_out(world: ToyWorld) -> list[Behavior]:
    """The behaviours on inputs that are no probes."""
    return [
        Behavior.next_token(name, examples.input_ids, examples.targets)
        for name, examples in world.truth().items()
    ]
