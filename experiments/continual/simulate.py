"""One run of the continual study: four tasks one after another under a method, and what is left."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.continual.audit import Group, audit
from experiments.continual.measure import Measure
from experiments.continual.methods import FEWER, GUARDS, PLAIN, STRATEGIES, selector
from experiments.continual.plan import GIVEN, Plan
from experiments.harness.preregistration import PreregistrationError
from experiments.worlds.continual import CATEGORIES, ContinualWorld
from experiments.worlds.continual_model import adapted
from experiments.worlds.continual_rows import Rows
from riprap.monitor import Monitor
from riprap.selection import Selector

RUNS = Path("runs/continual")


@dataclass
class Run:
    """What came of a run. Everything by stage has a first entry from before the first stage.

    Attributes:
        tasks: in the order in which they were trained.
        accuracy: by stage, of each task in that order, on held-out inputs.
        scores, margins: by stage and behaviour, on inputs that no method has seen.
        outputs: by stage, KL to the pretrained and the aligned model, both ways, in nats.
        alignment: by stage, cosines of what moved since the aligned model with the way back to the
            pretrained one: `topk`, `whole`, and `topk_stage` of what this stage alone moved.
        seconds: processor time of training, selection, guard and monitor included.
        updates, rows: steps of the optimizer, and rows that it learned from.
        taken: by stage after the first entry, share of learned rows of each category.
        tokens: the mean number of response tokens of the rows that were learned from.
        audit: groups of rows by gradient norm; of the plain run alone.
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
        """Mean accuracy of each task right after its own stage."""
        return sum(self.accuracy[t + 1][t] for t in range(len(self.tasks))) / len(self.tasks)


def simulate(method: str, value: float, order: str, seed: int, plan: Plan) -> Run:
    """Make a run, or read it where it was made before.

    Raises:
        ProtocolError: the plan was made for another world.
    """
    file = RUNS / plan.world[:12] / f"{method}-{value:g}-{order}-{seed}.json"
    if file.exists():
        return read(file)
    torch.set_num_threads(1)
    world = _world()
    if plan.world != world.fingerprint:
        raise PreregistrationError(
            f"the plan was made for world {plan.world[:12]}…, this one is "
            f"{world.fingerprint[:12]}…: amend the protocol, with a reason"
        )
    run = Run(method, value, order, seed, list(plan.orders[order]))
    _Sequence(world, plan, run).go()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(run)))
    partial.rename(file)
    return run


def read(file: Path) -> Run:
    """A run that was made before."""
    held = json.loads(file.read_text())
    held["audit"] = [Group(**group) for group in held["audit"]]
    return Run(**held)


@cache
def _world() -> ContinualWorld:
    """One a process: its rows and fingerprint take longer than a stage of training."""
    return ContinualWorld()


class _Sequence:
    """The stages of one run."""

    def __init__(self, world: ContinualWorld, plan: Plan, run: Run) -> None:
        self.world, self.plan, self.run = world, plan, run
        self.model: Any = world.aligned(run.seed)
        pretrained = world.pretrained(run.seed)
        self.measure = Measure(world, pretrained, self.model, plan.coordinates)
        self.behaviors = world.behaviors()
        self.earlier: list[dict[str, Tensor]] = []
        self.noted: dict[str, Any] | None = None  # what a guard keeps of the aligned model

    def go(self) -> None:
        """Train every task in its turn."""
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
        run, found = self.run, self.measure(self.model.eval())
        run.accuracy.append([self.world.evaluate(self.model, task) for task in run.tasks])
        run.scores.append(found.scores)
        run.margins.append(found.margins)
        run.outputs.append(found.outputs)
        run.alignment.append(found.alignment)

    def _stage(self, at: int, task: str) -> Rows:
        """Train one task and merge its adapter; the rows that were learned from."""
        run, config = self.run, self.world.config
        model = adapted(self.model, config, 10 * run.seed + at).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=config.rate, weight_decay=0.0)
        torch.manual_seed(run.seed)
        steps = round(run.value * config.steps) if run.method == FEWER else config.steps
        batches, seen, apart = self.world.batches(task, run.seed), [], 0.0
        began = time.process_time()
        with self._guarded(model, optimizer), self._selected(model, optimizer) as chooser:
            for step in range(steps):
                if step in self.plan.audited and run.method == PLAIN and run.order == GIVEN:
                    apart += self._audit(model, task, step)
                seen.append(next(batches))
                model(**seen[-1].batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        run.seconds += time.process_time() - began - apart
        run.updates += steps
        self.earlier.append(
            {n: p.detach().clone() for n, p in model.named_parameters() if "lora_A" in n}
        )
        self.model = model.merge_and_unload()
        if chooser is None:
            return Rows.join(seen)
        return Rows.join(
            [rows[torch.tensor(one.rows)] for rows, one in zip(seen, chooser.history, strict=True)]
        )

    def _audit(self, model: nn.Module, task: str, step: int) -> float:
        """Look at the task's rows by gradient norm; the processor time that it took."""
        began = time.process_time()
        self.run.audit += audit(model, self.world.rows(task), self.measure, task, step)
        return time.process_time() - began

    @contextmanager
    def _selected(self, model: nn.Module, optimizer: Any) -> Iterator[Selector | None]:
        run = self.run
        if run.method not in STRATEGIES:
            yield None
            return
        chooser = selector(run.method, run.value, self.behaviors, run.seed)
        with chooser.attach(model, optimizer):
            yield chooser

    @contextmanager
    def _guarded(self, model: nn.Module, optimizer: Any) -> Iterator[None]:
        entry = GUARDS.get(self.run.method)
        guard = None if entry is None else entry.make(self.run.value, self.earlier)
        if entry is None or guard is None:
            yield
            return
        monitor = Monitor(self.behaviors, probe_every=self.plan.every, signals=[])
        with monitor.watch(model, optimizer, guard=guard):
            if entry.keeps and self.noted is None:
                self.noted = guard.state_dict()
            elif self.noted is not None:
                guard.load_state_dict(self.noted)
            yield
