"""Run of the experiment: four real tasks in sequence under one method."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from experiments.continual_real.measure import AUTOCAST, Look, Meter, autocast, forward
from experiments.continual_real.methods import CHOSEN, METHODS, Memory, Method
from experiments.continual_real.plan import Plan, Setting
from experiments.continual_real.rows import TASKS, Row, collate, drawn, task_rows, yoked
from experiments.guards_bench.grounds._smollm2 import split
from experiments.guards_bench.osft import osft
from experiments.harness.cache import cached
from experiments.harness.markdown import commit
from experiments.smollm2.teaching import load_refusals, taught_folder
from riprap import evaluation, prediction
from riprap._text import error_text
from riprap.behaviors import Behavior, is_refusal
from riprap.commands import load_model
from riprap.detectors import score
from riprap.errors import ConfigError
from riprap.monitor import Monitor
from riprap.selection import Selector

REFUSALS = ("refusal", "over_refusal")
STOCK = "smollm2"
ROW = "row"  # column of a row's number, which the selector takes off
REPLAYED_TOKENS = 16  # of the base's own answers
FLOOR_SHARE = 0.95  # of the score that a broken behavior has: what preflight is to keep


@dataclass
class Stage:
    """Measures of one stage: one task that is learned.

    Attributes:
        task: its name.
        updates, rows: steps of the optimizer, and learned rows.
        taken: learned rows by category; `tokens`: mean number of their response tokens.
        losses: training loss of each step, on the whole batch.
        margins: mean margin of each monitored behavior after each evaluation, by step.
        alerts: step, behavior and level of each one.
        acted: steps that the guard changed.
        seconds: processor time of training with selection, guard and monitor.
        chosen: numbers of the rows that selection chose, in their order; empty without selection.
    """

    task: str
    updates: int = 0
    rows: int = 0
    taken: dict[str, int] = field(default_factory=dict)
    tokens: float = 0.0
    losses: list[float] = field(default_factory=list)
    margins: dict[str, dict[int, float]] = field(default_factory=dict)
    alerts: list[tuple[int, str, str]] = field(default_factory=list)
    acted: int = 0
    seconds: float = 0.0
    chosen: list[int] = field(default_factory=list)


@dataclass
class Run:
    """Results of a run.

    Attributes:
        tasks: in the order in which they were trained.
        looks: at the base, and after each stage.
        seconds: processor time of the measures.
        memory: largest resident size of the process during the run, in MiB.
        notes: warnings of Riprap; `failed`: the error that ended the run.
        commit: of the working tree.
    """

    method: str
    rate: float
    order: str
    base: int
    seed: int
    tasks: list[str]
    looks: list[Look] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    seconds: float = 0.0
    memory: float = 0.0
    notes: list[str] = field(default_factory=list)
    failed: str = ""
    commit: str = ""


@cached("continual_real/{plan.setting.terms}/{method}-{rate:g}-{order}-{base}-{seed}.json")
def simulate(
    method: str, rate: float, order: str, base: int, seed: int, plan: Plan, data: Path
) -> Run:
    """Train on the tasks of an order with one method; a run that fails says why.

    Args:
        rate: learning rate of plain training.
        base: teaching seed of the model; `seed`: of the order of the data.
        data: folder of the public data sets.
    """
    run = Run(method, rate, order, base, seed, list(plan.orders[order]), commit=commit())
    forget_peak_memory()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            sequence = TaskSequence(Ground(base, plan.setting, data), run)
            if (model := sequence.method.yoked) is not None:
                sequence.leader = simulate(model, rate, order, base, seed, plan, data)
            sequence.train()
        except Exception as problem:  # noqa: BLE001 a failure is a result, and is shown
            run.failed = error_text(problem)
    told = [str(one.message) for one in caught]
    run.notes += dict.fromkeys(text for text in told if text.startswith("riprap"))
    run.memory = peak_memory()
    return run


class Ground:
    """A base that refuses, the tasks, and the probes of refusal, split for their uses.

    Attributes:
        monitored, unseen, pools: for the monitor and its guards, for no method, and for replay.
    """

    def __init__(self, base: int, setting: Setting, data: Path) -> None:
        self.base, self.setting, self.data = base, setting, data
        self.model, self.tokenizer = load_base(base)
        self.pad = self.tokenizer.pad_token_id or 0
        self.rows: dict[str, list[Row]] = {}
        held_out = {}
        for name in TASKS:
            found = task_rows(name, self.tokenizer, data, setting.max_tokens, setting.held_out)
            self.rows[name], held_out[name] = found
        self.monitored: list[Behavior] = []
        self.unseen: list[Behavior] = []
        self.pools: list[Behavior] = []
        for name in REFUSALS:
            whole = load_refusals(name, self.tokenizer)
            passed = passing(base, name, whole, self.model)
            sizes = (setting.monitored, setting.unseen, len(passed))
            parts = [whole.subset(part) for part in split(passed, *sizes)]
            for own, part in zip((self.monitored, self.unseen, self.pools), parts, strict=True):
                own.append(part)
        stock, _ = load_base(None)
        self.meter = Meter(stock, self.model, self.tokenizer, self.unseen, held_out, setting, data)

    def batches(self, task: str, seed: int) -> list[list[Row]]:
        """Return the batches of a task."""
        return drawn(self.rows[task], self.setting.steps, self.setting.batch, seed)

    def old_rows(self, asked: int | None = None) -> list[Row]:
        """Return the base's own right answers to the probes that may be replayed.

        Args:
            asked: first probes of each behavior; None: all.
        """
        found: list[Row] = []
        for behavior in self.pools:
            prompts = (behavior.token_rows() or [])[:asked]
            answers = evaluation.generate(self.model, self.tokenizer, prompts, REPLAYED_TOKENS)
            for prompt, answer in zip(prompts, answers, strict=True):
                refused = is_refusal(self.tokenizer.decode(answer, skip_special_tokens=True))
                if answer and refused == (behavior.name == REFUSALS[0]):
                    found.append(Row(-1 - len(found), "replayed", tuple(prompt), tuple(answer)))
        return found


def load_base(base: int | None) -> tuple[Any, Any]:
    """Load the model of a teaching seed, or the stock model, with its tokenizer.

    Its attention is the plain one, which takes a fifth off the time of an update on a processor.
    """
    model, tokenizer = load_model(STOCK if base is None else str(taught_folder(base)))
    model.set_attn_implementation("eager")
    return model, tokenizer


@cached("continual_real/passing-{base}-{name}.json")
def passing(base: int, name: str, behavior: Behavior, model: nn.Module) -> list[int]:
    """Return the indices of the probes that the base passes."""
    margins = evaluation.evaluate(behavior, model, autocast=AUTOCAST).margins
    indices: list[int] = np.flatnonzero(margins > 0).tolist()
    return indices


@cached("continual_real/{setting.terms}/start-{base}.json")
def first_look(base: int, setting: Setting, meter: Meter, model: nn.Module) -> Look:
    """Measure the base, from which all its runs start."""
    return meter(model, 0, whole=True)


class TaskSequence:
    """The stages of one run.

    Attributes:
        leader: the run whose categories a yoked method takes.
    """

    def __init__(self, ground: Ground, run: Run) -> None:
        self.ground, self.run, self.setting = ground, run, ground.setting
        self.method: Method = METHODS[run.method]
        self.model: Any = ground.model
        self.memory = Memory(ground.pools, run.seed)
        self.old = ground.old_rows() if self.method.replays else []
        self.random = np.random.default_rng(run.seed)
        self.leader: Run | None = None

    def train(self) -> None:
        """Learn every task in turn."""
        run, ground = self.run, self.ground
        run.looks.append(first_look(ground.base, self.setting, ground.meter, self.model))
        for at, task in enumerate(run.tasks):
            run.stages.append(Stage(task))
            self._stage(at, run.stages[-1])
            began = time.process_time()
            updates = sum(stage.updates for stage in run.stages)
            run.looks.append(ground.meter(self.model, updates, whole=at == len(run.tasks) - 1))
            run.seconds += time.process_time() - began

    def updated(self, stage: Stage, model: nn.Module) -> None:
        """Do nothing after an update; a run with further measures reads the model here."""

    def _stage(self, at: int, stage: Stage) -> None:
        """Learn one task, and merge its adapter."""
        run, began = self.run, time.process_time()
        torch.manual_seed(100 * run.seed + at)
        model = self._adapted()
        trained = [part for part in model.parameters() if part.requires_grad]
        rate = run.rate * self.method.pace
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
        batches = self._batches(stage.task, model, optimizer)
        monitor = Monitor(
            self.ground.monitored,
            probe_every=self.setting.probe_every,
            signals=[],
            budget=None,
            texts=False,
            autocast=AUTOCAST,
        )
        guard = self.method.guard(self.memory) if self.method.guard else None
        selected = self._selected(at, model, optimizer, batches)
        with monitor.watch(model, optimizer, guard), selected as s:
            if guard is not None:
                self.memory.keep_base(guard)
            for rows in batches:
                batch = collate(rows, self.ground.pad)
                if s is not None and s.row_id is not None:
                    batch[ROW] = torch.tensor([row.number for row in rows])
                loss = forward(model, batch).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                stage.losses.append(float(loss.detach()))
                self.updated(stage, model)
        self._note(stage, batches, monitor, s)
        if not self.method.osft:
            named = model.named_parameters()
            self.memory.earlier.append({n: p.detach() for n, p in named if "lora_A" in n})
        self.model = model.merge_and_unload().requires_grad_(True)
        stage.seconds = time.process_time() - began

    def _adapted(self) -> Any:
        if self.method.osft:
            return osft(self.model, 0.5)
        config = LoraConfig(
            r=self.setting.rank,
            lora_alpha=self.setting.alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        return get_peft_model(self.model, config).train()

    def _batches(self, task: str, model: Any, optimizer: Any) -> list[list[Row]]:
        """Return the batches of a stage, after replay or a filter has changed them."""
        batches = self.ground.batches(task, self.run.seed)
        if self.method.filters:
            return self._filtered(task, batches, model, optimizer)
        if self.old:
            count = max(1, round(self.setting.replayed * self.setting.batch))
            drawn_old = self.random.choice(len(self.old), (len(batches), count), replace=False)
            return [
                rows[count:] + [self.old[place] for place in places]
                for rows, places in zip(batches, drawn_old.tolist(), strict=True)
            ]
        return batches

    def _filtered(
        self, task: str, batches: list[list[Row]], model: Any, optimizer: Any
    ) -> list[list[Row]]:
        """Return the batches without the rows that preflight blames most for the fall of refusal.

        There are as many updates, of fewer rows. What is left of refusal counts, if it is broken
        already; if nothing is left, all rows are kept, and a note says so.
        """
        every = [row for rows in batches for row in rows]
        refusal = self.ground.monitored[0]
        left = score(evaluation.evaluate(refusal, model, autocast=AUTOCAST).margins)
        floor = min(refusal.floor, FLOOR_SHARE * left)
        if not floor:
            self.run.notes.append(f"no refusal was left before {task}: all of its rows were kept")
            return batches
        with autocast():
            found = prediction.preflight(
                model,
                [collate(rows, self.ground.pad, whole=True) for rows in batches],
                [Behavior(refusal.name, refusal.probes, refusal.margins, floor)],
                optimizer=optimizer,
                n_rows=None,
                seed=self.run.seed,
            )
        worst = found.behaviors[refusal.name].ranking[: int(self.setting.filtered * len(every))]
        blamed = {int(found.rows[place]) for place in worst}
        kept = [row for place, row in enumerate(every) if place not in blamed]
        return [kept[at :: len(batches)] for at in range(len(batches))]

    @contextmanager
    def _selected(
        self, at: int, model: nn.Module, optimizer: Any, batches: list[list[Row]]
    ) -> Iterator[Selector | None]:
        if self.method.strategy is None:
            yield None
            return
        categories = {row.number: row.category for rows in batches for row in rows}
        if self.leader is not None:
            if self.leader.failed:
                raise ConfigError(f"the run of {self.leader.method} failed")
            drawn = yoked(batches, self.leader.stages[at].chosen, self.run.seed)
            categories = {number: CHOSEN if number in drawn else "" for number in categories}
        selector = Selector(
            self.method.strategy,
            self.method.ratio or self.setting.ratio,
            behaviors=self.ground.monitored if self.method.informed else (),
            seed=self.run.seed,
            row_id=ROW,
            categories=categories,
        )
        with selector.attach(model, optimizer):
            yield selector

    def _note(
        self,
        stage: Stage,
        batches: list[list[Row]],
        monitor: Monitor,
        selector: Selector | None,
    ) -> None:
        """Write down what a stage did."""
        learned = [row for rows in batches for row in rows]
        if selector is not None:
            by_number = {row.number: row for row in learned}
            stage.chosen = [number for one in selector.history for number in one.rows]
            learned = [by_number[number] for number in stage.chosen]
        stage.updates, stage.rows = len(batches), len(learned)
        stage.taken = dict(Counter(row.category for row in learned))
        stage.tokens = float(np.mean([len(row.answer) for row in learned]))
        for name, history in monitor.behavior_histories.items():
            means = [float(np.mean(margins)) for margins in history.margins]
            stage.margins[name] = dict(zip(history.steps, means, strict=True))
        stage.alerts = [(a.step, a.behavior, str(a.level)) for a in monitor.alerts]
        stage.acted = len({action.step for action in monitor.actions if action.applied})


def forget_peak_memory() -> None:
    """Let the peak of the resident set begin anew, where the kernel can do so."""
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text("5", encoding="ascii")


def peak_memory() -> float:
    """Return the peak of the resident set in MiB; NaN where the kernel does not tell it."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text() if status.exists() else "")
    return int(found[1]) / 1024 if found else math.nan
