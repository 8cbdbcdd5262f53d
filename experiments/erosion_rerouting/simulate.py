"""One run: a condition, a new task for long, and what became of behaviours and features."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.erosion_rerouting.plan import Plan
from experiments.erosion_rerouting.tasks import (
    LAYERS,
    Ground,
    activations,
    guard_of,
    held_directions,
)
from experiments.erosion_rerouting.transplant import transplants
from experiments.harness.preregistration import Preregistration, PreregistrationError
from riprap.behaviors import Behavior
from riprap.detectors import score
from riprap.evaluation import evaluate
from riprap.guards import FeatureAnchor, Guard
from riprap.monitor import Monitor

RUNS = Path("runs/detour")


@dataclass(frozen=True)
class Mark:
    """What was measured after a step.

    Attributes:
        learned: accuracy on all of the new task.
        scores, margins: of each behaviour on its probes; margins as a share of the start's mean.
        unseen_scores, unseen_margins: the same on inputs that no guard reads.
        moved: ‖P(a − a₀)‖² / ‖a₀‖² over the probes, P onto the held directions of a layer or onto
            the rest, by "layer part" such as "1 held"; unseen_moved: over the other inputs.
        transplanted: by behaviour and route the mean margin with that part put back to the start's,
            as a share of the start's.
        features: how many features are held, over all layers.
    """

    step: int
    learned: float
    scores: dict[str, float]
    margins: dict[str, float]
    unseen_scores: dict[str, float]
    unseen_margins: dict[str, float]
    moved: dict[str, float]
    unseen_moved: dict[str, float]
    transplanted: dict[str, dict[str, float]]
    features: int

    @property
    def least(self) -> float:
        """The lowest score of a behaviour on its probes."""
        return min(self.scores.values())


@dataclass(frozen=True)
class Run:
    """A condition on a task and a seed, and what was measured at each mark."""

    condition: str
    task: str
    seed: int
    marks: tuple[Mark, ...]

    def at(self, step: int) -> Mark:
        """The mark of a step."""
        return next(mark for mark in self.marks if mark.step == step)


def simulate(condition: str, task: str, seed: int, preregistration: Preregistration) -> Run:
    """Make a run, or read it where it was made before.

    Raises:
        ProtocolError: the protocol was made for another world.
    """
    file = RUNS / preregistration.content_hash()[:12] / f"{condition}-{task}-{seed}.json"
    if file.exists():
        return _read(json.loads(file.read_text()))
    torch.set_num_threads(1)  # the world is too small for two cores to help each other
    plan = Plan.of(preregistration)
    ground = Ground(task, seed, plan, RUNS)
    if plan.world != ground.world.fingerprint:
        raise PreregistrationError(
            f"protocol {preregistration.name!r} was made for another toy world: amend it"
        )
    run = Run(condition, task, seed, tuple(_train(condition, ground, preregistration)))
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(run)))
    partial.rename(file)
    return run


def _read(document: dict[str, Any]) -> Run:
    marks = tuple(Mark(**mark) for mark in document.pop("marks"))
    return Run(**document, marks=marks)


def _train(condition: str, ground: Ground, preregistration: Preregistration) -> list[Mark]:
    plan, world = ground.plan, ground.world
    model = world.start(ground.seed).train()
    optimizer, batches = world.optimizer(model), world.batches(ground.task, seed=ground.seed)
    guard = guard_of(condition, ground)
    ruler = Ruler(ground)
    # Its detector never speaks, and no signal is asked: the monitor only runs the guard.
    monitor = Monitor([ground.old], preregistration, probe_every=plan.steps + 1, signals=[])
    if guard is not None:
        monitor.begin(model, optimizer, guard)
    marks = []
    for step in range(1, plan.steps + 1):
        world.loss(model, next(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in plan.at:
            marks.append(ruler.read(step, model, guard))
    monitor.end()
    return marks


class Ruler:
    """Measures a model beside the start that it came from."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.seen = {behavior.name: behavior for behavior in ground.world.behaviors()}
        self.first = {name: _mean(one, ground.start) for name, one in self.seen.items()}
        self.unseen_first = {n: _mean(one, ground.start) for n, one in ground.unseen.items()}

    def read(self, step: int, model: nn.Module, guard: Guard | None) -> Mark:
        """Everything that a mark holds."""
        held = held_directions(guard, self.ground)
        scores, margins = _answers(self.seen, model, self.first)
        unseen_scores, unseen_margins = _answers(self.ground.unseen, model, self.unseen_first)
        leaves = [] if guard is None else guard.flatten()
        anchors = [leaf for leaf in leaves if isinstance(leaf, FeatureAnchor)]
        return Mark(
            step=step,
            learned=self.ground.world.evaluate(model, self.ground.task),
            scores=scores,
            margins=margins,
            unseen_scores=unseen_scores,
            unseen_margins=unseen_margins,
            moved=self._moved([self.ground.old], model, held),
            unseen_moved=self._moved(list(self.ground.unseen.values()), model, held),
            transplanted={
                name: {
                    route: margin / self.first[name]
                    for route, margin in transplants(one, model, self.ground.start, held).items()
                }
                for name, one in self.seen.items()
            },
            features=sum(int((anchor.signs != 0).sum()) for anchor in anchors),
        )

    def _moved(
        self, behaviors: list[Behavior], model: nn.Module, held: Mapping[str, Tensor]
    ) -> dict[str, float]:
        then = activations(self.ground.start, behaviors)
        now = activations(model, behaviors)
        found = {}
        for layer in LAYERS:
            away, size = now[layer] - then[layer], float(then[layer].square().sum())
            inside = float((away @ held[layer].T).square().sum())
            found[f"{layer[-1]} held"] = inside / size
            found[f"{layer[-1]} rest"] = (float(away.square().sum()) - inside) / size
        return found


def _mean(behavior: Behavior, model: nn.Module) -> float:
    return float(evaluate(behavior, model).margins.mean())


def _answers(
    behaviors: Mapping[str, Behavior], model: nn.Module, first: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    found = {name: evaluate(one, model).margins for name, one in behaviors.items()}
    margins = {name: float(rows.mean()) / first[name] for name, rows in found.items()}
    return {name: score(rows) for name, rows in found.items()}, margins
