"""One run: a ground, a method with its knob at a value, and a seed."""

from __future__ import annotations

import copy
import io
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.guards_bench.grounds import GROUNDS, Ground, OldTask, Stage, accuracy, loss
from experiments.guards_bench.methods import METHODS, Memory, Method
from experiments.harness.markdown import commit
from experiments.transfer.simulate import held_bytes
from riprap import signals
from riprap.behaviors import Behavior
from riprap.monitor import Monitor
from riprap.toy import Examples, batches

FLOOR, FLOOR_SHARE = 0.9, 0.9  # a floor is at most this, and this share of the score at the start
REASONS = 8  # different sentences that a run keeps


@dataclass(frozen=True)
class Look:
    """Scores along the last stage.

    Attributes:
        work: tokens that went through the model so far in this stage, with three times the weight
            where a backward pass follows, as a share of what the plain run of the stage needs.
        seconds: processor time so far, as a share of the plain run's.
        old: score of each old task on its test rows.
        new: how well the new task is done, on its test rows; see `Ground.new_score`.
    """

    step: int
    work: float
    seconds: float
    old: dict[str, float]
    new: float


@dataclass(frozen=True)
class Run:
    """Results of one run.

    Attributes:
        value: the knob's value.
        looks: along the last stage, the first before it and the last at its end.
        work, seconds: of all stages, as shares of the plain run's; see `Look`.
        steps: steps taken in all stages.
        replayed: old rows drawn from the buffer.
        acted: share of the steps that the guard changed.
        kept: bytes of the guard's tensors, as a share of the parameters'.
        reasons: warnings, and reasons why the guard did nothing; numbers are left out.
        stopped: why the guard asked training to stop.
        failed: the error that ended the run.
        commit: of the working tree.
    """

    ground: str
    method: str
    value: float
    seed: int
    looks: list[Look] = field(default_factory=list)
    work: float = float("nan")
    seconds: float = float("nan")
    steps: int = 0
    replayed: int = 0
    acted: float = 0.0
    kept: float = 0.0
    reasons: list[str] = field(default_factory=list)
    stopped: str = ""
    failed: str = ""
    commit: str = ""

    @property
    def key(self) -> tuple[str, str, float, int]:
        """What was run."""
        return self.ground, self.method, self.value, self.seed

    def document(self) -> dict[str, Any]:
        """Return the run as plain data."""
        return asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Run:
        """Return the run of a document."""
        fields = dict(document)
        fields["looks"] = [Look(**look) for look in fields["looks"]]
        return cls(**fields)


class Meter:
    """Counts what a model computes, and the processor time of training with all that belongs to it.

    Nothing counts inside `paused`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.work, self._spent, self._pauses = 0.0, 0.0, 0
        self._began = time.process_time()
        self._handle = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._pauses:
            tokens = next(part for part in (*args, *kwargs.values()) if isinstance(part, Tensor))
            self.work += tokens.numel() * (3 if torch.is_grad_enabled() else 1)

    @property
    def seconds(self) -> float:
        """Processor time so far."""
        return self._spent + (0.0 if self._pauses else time.process_time() - self._began)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing inside the block."""
        self._spent, self._pauses = self.seconds, self._pauses + 1
        try:
            yield
        finally:
            self._pauses -= 1
            self._began = time.process_time()

    def remove(self) -> None:
        """Take the hook off the model."""
        self._handle.remove()


def run(ground: Ground, name: str, method: Method, value: float, seed: int) -> Run:
    """Train through all stages of a ground; what fails is told in the result."""
    torch.set_num_threads(1)
    own = _Run(ground, method, value, seed)
    failed = ""
    with warnings.catch_warnings(record=True) as caught, redirect_stderr(io.StringIO()):
        warnings.simplefilter("always")
        try:
            own.train()
        except Exception as problem:  # noqa: BLE001 a failure is a result, and is shown
            failed = f"{type(problem).__name__}: {problem}"
    told = [str(one.message) for one in caught]
    own.reasons += [t.removeprefix("riprap: guard ") for t in told if t.startswith("riprap")]
    return own.result(name, failed)


def simulate(ground: str, method: str, value: float, seed: int) -> Run:
    """Run a method of the table on a ground, by their names."""
    return run(GROUNDS[ground], method, METHODS[method], value, seed)


class _Run:
    """The state of a run while it trains."""

    def __init__(self, ground: Ground, method: Method, value: float, seed: int) -> None:
        self.ground, self.method, self.value, self.seed = ground, method, value, seed
        self.looks: list[Look] = []
        self.reasons: list[str] = []
        self.steps = self.replayed = self.acted = 0
        self.work = self.seconds = self.unit_work = self.unit_seconds = self.kept = 0.0
        self.stopped = ""

    def result(self, name: str, failed: str) -> Run:
        """Return what is known so far."""
        different = dict.fromkeys(re.sub(r"\d+(\.\d+)?", "#", text) for text in self.reasons)
        return Run(
            ground=self.ground.name,
            method=name,
            value=self.value,
            seed=self.seed,
            looks=self.looks,
            work=self.work / self.unit_work if self.unit_work else float("nan"),
            seconds=self.seconds / self.unit_seconds if self.unit_seconds else float("nan"),
            steps=self.steps,
            replayed=self.replayed,
            acted=self.acted / max(self.steps, 1),
            kept=self.kept,
            reasons=list(different)[:REASONS],
            stopped=self.stopped,
            failed=failed,
            commit=commit(),
        )

    def train(self) -> None:
        """Train through all stages."""
        model = self.ground.start(self.seed).train()
        stages = self.ground.stages(self.seed)
        for at, stage in enumerate(stages):
            model = self._stage(model, stage, 100 * self.seed + at, last=at == len(stages) - 1)

    def _stage(self, model: nn.Module, stage: Stage, seed: int, last: bool) -> nn.Module:
        """Train on one task; return the model that has learned it."""
        ground = self.ground
        memory = Memory(stage.old, seed, ground.layer, ground.causal, ground.replay)
        data = self._batches(stage, memory, seed)
        looks_at = {round(stage.steps * part / ground.looks) for part in range(1, ground.looks + 1)}
        unit_work = 3.0 * stage.steps * stage.batch * stage.task.input_ids.shape[1]
        timed = [plain_seconds(model, stage, ground.timed)]
        if self.method.adapt is not None:
            model = self.method.adapt(model, self.value)
        path = [(0, 0.0, 0.0, *self._scores(model, stage))]
        torch.manual_seed(seed)
        optimizer = stage.optimizer(model)
        monitor = Monitor(
            [_behavior(own, model) for own in stage.old],
            signals=signals.per_step(),
            budget=None,
            autocast=ground.autocast,
        )
        meter, taken = Meter(model), 0
        try:
            if self.method.make is not None:
                guard = self.method.make(memory, self.value)
                monitor.begin(model, optimizer, guard)
            for step in range(1, stage.steps + 1):
                loss(model, next(data)).backward()
                optimizer.step()
                optimizer.zero_grad()
                taken = step
                if last and step in looks_at:
                    with meter.paused():
                        found = self._scores(model, stage)
                    path.append((step, meter.work, meter.seconds, *found))
                if monitor.should_stop:
                    self.stopped = monitor.stop_reason or "no reason given"
                    break
            if self.method.make is not None:
                monitor.end()
                self.kept = held_bytes(guard) / sum(p.nbytes for p in model.parameters())
        finally:
            meter.remove()
        if last and path[-1][0] < taken:
            path.append((taken, meter.work, meter.seconds, *self._scores(model, stage)))
        if self.method.adapt is not None:
            merged: Any = model
            model = merged.merge_and_unload().requires_grad_(True)
        timed.append(plain_seconds(model, stage, ground.timed))
        unit_seconds = float(np.mean(timed)) * stage.steps
        self._add(monitor, memory, taken)
        self.work, self.seconds = self.work + meter.work, self.seconds + meter.seconds
        self.unit_work += unit_work
        self.unit_seconds += unit_seconds
        if last:
            self.looks = [
                Look(step, work / unit_work, seconds / unit_seconds, old, new)
                for step, work, seconds, old, new in path
            ]
        return model

    def _scores(self, model: nn.Module, stage: Stage) -> tuple[dict[str, float], float]:
        old = {own.name: accuracy(model, own.test) for own in stage.old}
        return old, self.ground.new_score(model, stage)

    def _batches(self, stage: Stage, memory: Memory, seed: int) -> Iterator[Examples]:
        """Yield the batches of a stage; with mixing a share of the rows is old."""
        if not self.method.mixes:
            yield from batches([stage.task], [stage.batch], seed)
        old = max(1, round(self.value * stage.batch))
        pool = Examples.join([own.pool for own in memory.old])
        for batch in batches([stage.task, pool], [stage.batch - old, old], seed):
            self.replayed += old
            yield batch

    def _add(self, monitor: Monitor, memory: Memory, taken: int) -> None:
        """Add what happened in a stage."""
        actions = monitor.actions if self.method.make is not None else []
        self.steps += taken
        self.replayed += memory.replayed
        self.acted += len({action.step for action in actions if action.applied})
        self.reasons += [
            f"{action.guard}: {action.detail}"
            for action in actions
            if not action.applied and action.moment == "visit"
        ]


def _behavior(own: OldTask, model: nn.Module) -> Behavior:
    """Return the monitored behavior; what is not at its floor at the start gets a lower one."""
    floor = min(FLOOR, FLOOR_SHARE * accuracy(model, own.probes))
    return own.monitored(max(floor, 0.05))


def plain_seconds(model: nn.Module, stage: Stage, steps: int) -> float:
    """Return the processor time of a plain step, by steps of a copy of the model.

    Timed within each run: the machine's speed changes from hour to hour.
    """
    own = copy.deepcopy(model)
    optimizer, data = stage.optimizer(own), batches([stage.task], [stage.batch], 0)
    times = []
    for _ in range(steps):
        began = time.process_time()
        loss(own, next(data)).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - began)
    return float(np.mean(times[max(1, steps // 10) :]))
