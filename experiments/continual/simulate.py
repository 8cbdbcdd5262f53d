"""Run of the experiment: four tasks in sequence under one method."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from experiments.continual.measure import Group, StageMeter, audit
from experiments.continual.methods import (
    CONTROLS,
    FEWER,
    GUARDS,
    PLAIN,
    STRATEGIES,
    control,
    numbered,
    selector,
)
from experiments.continual.plan import GIVEN, Plan
from experiments.harness.cache import cached
from experiments.harness.plan import require_world
from experiments.worlds.continual import CATEGORIES, ContinualWorld
from experiments.worlds.continual_model import adapted
from experiments.worlds.continual_rows import Rows
from riprap.monitor import Monitor
from riprap.selection import Selector


@dataclass
class Run:
    """Results of a run. Everything by stage has a first entry from before the first stage.

    Attributes:
        tasks: in the order in which they were trained.
        accuracy: by stage, of each task in that order, on held-out inputs.
        scores, margins: by stage and behavior, on inputs that no method has seen.
        outputs: by stage, KL to the pretrained and the aligned model, both ways, in nats.
        alignment: by stage, cosines of the movement since the aligned model with the direction
            back to the pretrained one: `topk`, `whole`, and `topk_stage` of this stage alone.
        seconds: processor time of training, including selection, guard and monitor.
        updates, rows: steps of the optimizer, and learned rows.
        taken: share of learned rows of each category, by stage, without the first entry.
        tokens: mean number of response tokens of the learned rows.
        audit: groups of rows by gradient norm; only of the plain run.
    """

    method: str
    value: float
    order: str
    seed: int
    tasks: list[str]
    accuracy: list[list[float]] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)
    margins: list[dict[str, float]] = field(default_factory=list)
    outputs: list[dict[str, float]] = field(default_factory=list)
    alignment: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    updates: int = 0
    rows: int = 0
    taken: list[dict[str, float]] = field(default_factory=list)
    tokens: float = 0.0
    audit: list[Group] = field(default_factory=list)

    @property
    def learned(self) -> float:
        """Mean accuracy of the tasks, each right after its own stage."""
        return sum(self.accuracy[t + 1][t] for t in range(len(self.tasks))) / len(self.tasks)


@cached("continual/{plan.world:.12}/{method}-{value:g}-{order}-{seed}.json")
def simulate(method: str, value: float, order: str, seed: int, plan: Plan) -> Run:
    """Train on the tasks of an order with one method, its knob or ratio at a value."""
    world = _world()
    require_world(plan.world, world.fingerprint)
    run = Run(method, value, order, seed, list(plan.orders[order]))
    _Sequence(world, plan, run).train()
    return run


@cached("continual/{plan.world:.12}/batches-{batches}/{method}-{seed}.json")
def simulate_batches(method: str, seed: int, batches: int, plan: Plan) -> Run:
    """Train on the tasks of the given order, the batches and choices drawn by a seed of their own.

    Args:
        seed: of the aligned model and the adapters; `batches`: of the batches and the choices.
    """
    world = _world()
    require_world(plan.world, world.fingerprint)
    value = 1.0 if method == PLAIN else plan.ratio
    run = Run(method, value, GIVEN, seed, list(plan.orders[GIVEN]))
    _Sequence(world, plan.model_copy(update={"audited": ()}), run, batches).train()
    return run


@cache
def _world() -> ContinualWorld:
    """Return one world a process; its construction takes longer than a stage of training."""
    return ContinualWorld()


class _Sequence:
    """The stages of one run.

    Args:
        draw: seed of the batches and the choices; None: the run's.
    """

    def __init__(
        self, world: ContinualWorld, plan: Plan, run: Run, draw: int | None = None
    ) -> None:
        self.world, self.plan, self.run = world, plan, run
        self.draw = run.seed if draw is None else draw
        self.model: Any = world.aligned(run.seed)
        pretrained = world.pretrained(run.seed)
        self.meter = StageMeter(world, pretrained, self.model, plan.coordinates)
        self.behaviors = world.behaviors()
        self.earlier: list[dict[str, Tensor]] = []
        self.guard_state: dict[str, Any] | None = None  # of the aligned model

    def train(self) -> None:
        """Train every task in turn."""
        run, tokens = self.run, 0
        self._measure()
        for at, task in enumerate(run.tasks):
            learned = self._stage(at, task)
            run.rows += len(learned)
            tokens += int(learned.response_tokens.sum())
            shares = learned.category.bincount(minlength=len(CATEGORIES)) / len(learned)
            run.taken.append(dict(zip(CATEGORIES, shares.tolist(), strict=True)))
            self._measure()
        run.tokens = tokens / run.rows

    def _measure(self) -> None:
        run, measures = self.run, self.meter(self.model.eval())
        run.accuracy.append([self.world.evaluate(self.model, task) for task in run.tasks])
        run.scores.append(measures.scores)
        run.margins.append(measures.margins)
        run.outputs.append(measures.outputs)
        run.alignment.append(measures.alignment)

    def _stage(self, at: int, task: str) -> Rows:
        """Train one task and merge its adapter; return the learned rows."""
        run, config = self.run, self.world.config
        model = adapted(self.model, config.rank, config.scale, 10 * run.seed + at).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=config.rate, weight_decay=0.0)
        torch.manual_seed(run.seed)
        steps = round(run.value * config.steps) if run.method == FEWER else config.steps
        batches, drawn, auditing = self.world.batches(task, self.draw), [], 0.0
        began = time.process_time()
        with self._guarded(model, optimizer), self._selected(model, optimizer) as row_selector:
            for step in range(steps):
                if step in self.plan.audited and run.method == PLAIN and run.order == GIVEN:
                    auditing += self._audit(model, task, step)
                drawn.append(next(batches))
                rows = drawn[-1]
                model(**(numbered(rows) if run.method in CONTROLS else rows.batch)).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        run.seconds += time.process_time() - began - auditing
        run.updates += steps
        own = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_A" in n}
        self.earlier.append(own)
        self.model = model.merge_and_unload()
        if row_selector is not None:
            pairs = zip(drawn, row_selector.history, strict=True)
            drawn = [rows[torch.tensor(record.rows) % len(rows)] for rows, record in pairs]
        return Rows.join(drawn)

    def _audit(self, model: nn.Module, task: str, step: int) -> float:
        """Audit the task's rows by gradient norm; return the processor time of it."""
        began = time.process_time()
        self.run.audit += audit(model, self.world.rows(task), self.meter, task, step)
        return time.process_time() - began

    @contextmanager
    def _selected(self, model: nn.Module, optimizer: Any) -> Iterator[Selector | None]:
        run = self.run
        if run.method in CONTROLS:
            row_selector = control(run.method, run.value, self.world.config.batch, self.draw)
        elif run.method in STRATEGIES:
            row_selector = selector(run.method, run.value, self.behaviors, self.draw)
        else:
            yield None
            return
        with row_selector.attach(model, optimizer):
            yield row_selector

    @contextmanager
    def _guarded(self, model: nn.Module, optimizer: Any) -> Iterator[None]:
        entry = GUARDS.get(self.run.method)
        guard = None if entry is None else entry.make(self.run.value, self.earlier)
        if entry is None or guard is None:
            yield
            return
        monitor = Monitor(self.behaviors, probe_every=self.plan.every, signals=[], budget=None)
        with monitor.watch(model, optimizer, guard=guard):
            if entry.keeps and self.guard_state is None:
                self.guard_state = guard.state_dict()
            elif self.guard_state is not None:
                guard.load_state_dict(self.guard_state)
            yield
