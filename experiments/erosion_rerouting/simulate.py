"""One run: a condition, a long new task, and measurements of behaviors and features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.erosion_rerouting.plan import Plan
from experiments.erosion_rerouting.tasks import (
    LAYERS,
    READOUT,
    Setting,
    activations,
    guard_of,
    held_directions,
)
from experiments.harness.cache import cached
from experiments.harness.plan import require_world
from experiments.harness.preregistration import Preregistration
from riprap.behaviors import Behavior
from riprap.detectors import score
from riprap.diagnosis import interpolate_, restore_weights
from riprap.evaluation import evaluate
from riprap.guards import FeatureAnchor, Guard
from riprap.monitor import Monitor

ROUTES = (
    *(f"{layer[-1]} {part}" for layer in LAYERS for part in ("held", "rest")),
    "0 elsewhere",
    "readout",
)


def transplants(
    behavior: Behavior, model: nn.Module, start: nn.Module, held: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return the mean margin with each part restored to the start's.

    `0 held` and `0 rest`: layer 0 at the last position, inside and outside the anchored
    directions; `1 held`, `1 rest`: the same for layer 1; `0 elsewhere`: layer 0 at all other
    positions, which layer 1 reads; `readout`: final norm and output matrix.

    Args:
        held: by layer an orthonormal basis, shape (k, d).
    """
    margins = {}
    for layer in LAYERS:
        outputs = _outputs(behavior, start, layer)
        inside = held[layer].T @ held[layer]
        outside = torch.eye(len(inside)) - inside
        with _replace(model, layer, outputs, inside, slice(-1, None)):
            margins[f"{layer[-1]} held"] = _margin(behavior, model)
        with _replace(model, layer, outputs, outside, slice(-1, None)):
            margins[f"{layer[-1]} rest"] = _margin(behavior, model)
        if layer == LAYERS[0]:
            with _replace(model, layer, outputs, inside + outside, slice(None, -1)):
                margins["0 elsewhere"] = _margin(behavior, model)
    names = [name for name, _ in model.named_parameters() if name.startswith(READOUT)]
    with restore_weights(model) as trained:
        interpolate_(model, trained, dict(start.named_parameters()), 1.0, names)
        margins["readout"] = _margin(behavior, model)
    return margins


def _margin(behavior: Behavior, model: nn.Module) -> float:
    return float(evaluate(behavior, model).margins.mean())


def _outputs(behavior: Behavior, model: nn.Module, layer: str) -> Tensor:
    """Return the output of a layer at all positions, shape (probes, T, d)."""
    outputs: list[Tensor] = []

    def append(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(_tensor(output).detach())

    handle = model.get_submodule(layer).register_forward_hook(append)
    try:
        evaluate(behavior, model)
    finally:
        handle.remove()
    return torch.cat(outputs)


@contextmanager
def _replace(
    model: nn.Module, layer: str, outputs: Tensor, onto: Tensor, positions: slice
) -> Iterator[None]:
    """Replace a layer's output by `outputs` at some positions, inside the projection `onto`."""

    def replace(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        own = _tensor(output).clone()
        own[:, positions] += (outputs - own)[:, positions] @ onto
        return (own, *output[1:]) if isinstance(output, tuple) else own

    handle = model.get_submodule(layer).register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _tensor(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


@dataclass(frozen=True)
class Measurement:
    """Measurements after a step.

    Attributes:
        learned: accuracy on all of the new task.
        scores, margins: of each behavior on its probes; margins as a share of the start's mean.
        unseen_scores, unseen_margins: the same on inputs that no guard reads.
        moved: ‖P(a − a₀)‖² / ‖a₀‖² over the probes, P onto the anchored directions of a layer or
            onto the rest, by "layer part" such as "1 held"; unseen_moved: over the other inputs.
        transplanted: mean margin by behavior and route with that part restored to the start's, as
            a share of the start's.
        features: number of anchored features, over all layers.
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
        """Lowest score of a behavior on its probes."""
        return min(self.scores.values())


@dataclass(frozen=True)
class Run:
    """A condition on a task and a seed, with its measurements."""

    condition: str
    task: str
    seed: int
    marks: tuple[Measurement, ...]

    def at(self, step: int) -> Measurement:
        """Return the measurement after a step."""
        return next(mark for mark in self.marks if mark.step == step)


@cached("erosion_rerouting/{preregistration.terms:.12}/{condition}-{task}-{seed}.json")
def simulate(condition: str, task: str, seed: int, preregistration: Preregistration) -> Run:
    """Train under one condition."""
    plan = Plan.of(preregistration)
    setting = Setting(task, seed, plan)
    world = setting.world
    require_world(plan.world, world.fingerprint)
    model = world.start(seed).train()
    optimizer, batches = world.optimizer(model), world.batches(task, seed=seed)
    guard = guard_of(condition, setting)
    meter = Meter(setting)
    # No signal is read and the detector never alerts: the monitor only runs the guard.
    monitor = Monitor(
        [setting.old], preregistration, probe_every=plan.steps + 1, signals=[], budget=None
    )
    if guard is not None:
        monitor.begin(model, optimizer, guard)
    marks = []
    for step in range(1, plan.steps + 1):
        world.loss(model, next(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in plan.at:
            marks.append(meter.measure(step, model, guard))
    monitor.end()
    return Run(condition, task, seed, tuple(marks))


class Meter:
    """Measures a model relative to its start."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.seen = {behavior.name: behavior for behavior in setting.world.behaviors()}
        self.first = {name: _margin(one, setting.start) for name, one in self.seen.items()}
        self.unseen_first = {n: _margin(one, setting.start) for n, one in setting.unseen.items()}

    def measure(self, step: int, model: nn.Module, guard: Guard | None) -> Measurement:
        """Measure a model after a step."""
        held = held_directions(guard, self.setting)
        scores, margins = _answers(self.seen, model, self.first)
        unseen_scores, unseen_margins = _answers(self.setting.unseen, model, self.unseen_first)
        leaves = [] if guard is None else guard.flatten()
        anchors = [leaf for leaf in leaves if isinstance(leaf, FeatureAnchor)]
        return Measurement(
            step=step,
            learned=self.setting.world.evaluate(model, self.setting.task),
            scores=scores,
            margins=margins,
            unseen_scores=unseen_scores,
            unseen_margins=unseen_margins,
            moved=self._moved([self.setting.old], model, held),
            unseen_moved=self._moved(list(self.setting.unseen.values()), model, held),
            transplanted={
                name: {
                    route: margin / self.first[name]
                    for route, margin in transplants(one, model, self.setting.start, held).items()
                }
                for name, one in self.seen.items()
            },
            features=sum(int((anchor.signs != 0).sum()) for anchor in anchors),
        )

    def _moved(
        self, behaviors: list[Behavior], model: nn.Module, held: Mapping[str, Tensor]
    ) -> dict[str, float]:
        then = activations(self.setting.start, behaviors)
        now = activations(model, behaviors)
        moved = {}
        for layer in LAYERS:
            away, size = now[layer] - then[layer], float(then[layer].square().sum())
            inside = float((away @ held[layer].T).square().sum())
            moved[f"{layer[-1]} held"] = inside / size
            moved[f"{layer[-1]} rest"] = (float(away.square().sum()) - inside) / size
        return moved


def _answers(
    behaviors: Mapping[str, Behavior], model: nn.Module, first: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    results = {name: evaluate(one, model).margins for name, one in behaviors.items()}
    margins = {name: float(rows.mean()) / first[name] for name, rows in results.items()}
    return {name: score(rows) for name, rows in results.items()}, margins
