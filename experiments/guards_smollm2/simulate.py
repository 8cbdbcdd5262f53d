"""One run of SmolLM2 on the erosion example under one guard, evaluated on unseen probes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from experiments.guards_smollm2.methods import GUARDED, GUARDS, NEEDS_ANSWERS, PLAIN, ProbeSplit
from experiments.guards_smollm2.plan import Plan
from experiments.harness.cache import RUNS, cached
from riprap import evaluation
from riprap.behaviors import Behavior
from riprap.commands.watch import TrainingRun, WatchConfig, load_model, load_rows
from riprap.detectors import score
from riprap.integrations.hf import MonitorCallback
from riprap.monitor import Monitor

EXAMPLE = Path("examples/smollm2-affirmative.yaml")
TAUGHT = 143  # rows of 175; the others tell how well the task was learned
EVALUATE_EVERY = 6  # steps between two looks at what nobody sees


@dataclass(frozen=True)
class Run:
    """Results of one run.

    Attributes:
        margins, scores: mean margin and score of each behavior by step, on unseen probes.
        task: loss on held-out rows at the end, in nats a response token; `before`: at step 0.
        seconds: processor time of training, with guard and monitor and their start.
        acted: share of the steps that the guard changed.
    """

    guard: str
    seed: int
    margins: dict[str, dict[int, float]]
    scores: dict[str, dict[int, float]]
    task: float
    before: float
    seconds: float
    acted: float
    alerts: list[str]


class UnseenProbes(TrainerCallback):
    """Evaluates the unseen probes now and then, and counts the time of it."""

    def __init__(self, unseen: list[Behavior], steps: int) -> None:
        self.unseen, self.last = unseen, steps
        self.margins: dict[str, dict[int, float]] = {b.name: {} for b in unseen}
        self.scores: dict[str, dict[int, float]] = {b.name: {} for b in unseen}
        self.seconds = 0.0

    def evaluate(self, model: nn.Module, step: int) -> None:
        """Evaluate all behaviors at both ends, and the first two in between."""
        began = time.process_time()
        ends = step in (0, self.last)
        for behavior in self.unseen if ends else self.unseen[: len(GUARDED)]:
            margins = evaluation.evaluate(behavior, model).margins
            self.margins[behavior.name][step] = float(margins.mean())
            self.scores[behavior.name][step] = score(margins)
        self.seconds += time.process_time() - began

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate after every sixth step."""
        if state.global_step % EVALUATE_EVERY == 0:
            self.evaluate(kwargs["model"], state.global_step)


@cached("guards_smollm2/{name}-{value:g}-{seed}-{plan.steps}.json")
def simulate(name: str, value: float, seed: int, plan: Plan) -> Run:
    """Train under one guard, its main parameter at a value."""
    steps = plan.steps
    config = WatchConfig.load(EXAMPLE)
    training = config.training.model_copy(update={"seed": seed, "max_steps": steps})
    config = config.model_copy(
        update={"training": training, "run_dir": RUNS / f"guards_smollm2/{name}-{seed}"}
    )
    model, tokenizer = load_model(config.model)
    rows = load_rows(config.data)
    probes = ProbeSplit.load(model, tokenizer)
    unseen = UnseenProbes(probes.unseen, steps)
    unseen.evaluate(model, 0)
    began = time.process_time()
    answers = probes.answers(model, tokenizer) if name in NEEDS_ANSWERS else []
    answering = time.process_time() - began
    monitor = Monitor(probes.measuring, probe_every=config.probe_every)
    callbacks: list[TrainerCallback] = [unseen]
    if name != PLAIN:
        guard = GUARDS[name](value, probes, answers)
        callbacks.insert(0, MonitorCallback(monitor, guard))
    taught, held_out = rows.select(range(TAUGHT)), rows.select(range(TAUGHT, len(rows)))
    prepared = TrainingRun(config, monitor, model, tokenizer, taught, eval_rows=held_out)
    torch.manual_seed(seed)  # the adapter's weights are random
    trainer = prepared.make_trainer(callbacks)
    before = trainer.evaluate()["eval_loss"]
    unseen.seconds, began = 0.0, time.process_time()
    trainer.train()
    seconds = answering + time.process_time() - began - unseen.seconds
    acted = {action.step for action in monitor.actions if action.applied}
    return Run(
        name,
        seed,
        unseen.margins,
        unseen.scores,
        trainer.evaluate()["eval_loss"],
        before,
        seconds,
        len(acted) / steps,
        [f"{a.step} {a.behavior} {a.level}" for a in monitor.alerts],
    )
