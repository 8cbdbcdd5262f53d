"""One run of the real model on the erosion example, under one guard, judged on unseen inputs."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from experiments.guards_smollm2.methods import BENCH, GUARDED, NEEDS_ANSWERS, PLAIN, RUNS, Parts
from experiments.guards_smollm2.plan import Plan
from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.commands.watch import TrainingRun, WatchConfig, load_model, load_rows
from riprap.detectors import score
from riprap.integrations.hf import MonitorCallback
from riprap.monitor import Monitor

EXAMPLE = Path("examples/smollm2-affirmative.yaml")
TAUGHT = 143  # rows of 175; the others tell how well the task was learned
ALONG_THE_WAY = 6  # steps between two looks at what nobody sees


@dataclass(frozen=True)
class Run:
    """What came of one run.

    Attributes:
        margins, scores: mean margin and score of each behaviour by step, on inputs nobody sees.
        task: nats a response token on rows that were not taught, at the end; `before`, at 0.
        seconds: processor time of training, with guard, monitor and all that they do at the start.
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

    @classmethod
    def load(cls, file: Path) -> Run:
        """From the JSON that `simulate` wrote, whose keys are all texts."""
        found = json.loads(file.read_text())
        for key in ("margins", "scores"):
            found[key] = {n: {int(s): v for s, v in own.items()} for n, own in found[key].items()}
        return cls(**found)


class Looking(TrainerCallback):
    """Looks at the unseen inputs now and then; the time that this takes is told apart."""

    def __init__(self, unseen: list[Behavior], steps: int) -> None:
        self.unseen, self.last = unseen, steps
        self.margins: dict[str, dict[int, float]] = {b.name: {} for b in unseen}
        self.scores: dict[str, dict[int, float]] = {b.name: {} for b in unseen}
        self.seconds = 0.0

    def look(self, model: nn.Module, step: int) -> None:
        """All behaviours at both ends, the first two in between."""
        began = time.process_time()
        ends = step in (0, self.last)
        for behavior in self.unseen if ends else self.unseen[: len(GUARDED)]:
            found = probing.evaluate(behavior, model).margins
            self.margins[behavior.name][step] = float(found.mean())
            self.scores[behavior.name][step] = score(found)
        self.seconds += time.process_time() - began

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After every sixth step."""
        if state.global_step % ALONG_THE_WAY == 0:
            self.look(kwargs["model"], state.global_step)


def simulate(name: str, seed: int, plan: Plan) -> Run:
    """Make a run, or read it where it was made before by the same terms."""
    value = plan.knobs.get(name, 0.0)
    file = RUNS / f"{name}-{value:g}-{seed}-{plan.steps}.json"
    if file.exists():
        return Run.load(file)
    torch.set_num_threads(1)
    file.parent.mkdir(parents=True, exist_ok=True)
    run = _train(name, value, seed, plan.steps)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(run)))
    partial.rename(file)
    return run


def _train(name: str, value: float, seed: int, steps: int) -> Run:
    config = WatchConfig.load(EXAMPLE)
    training = config.training.model_copy(update={"seed": seed, "steps": steps})
    config = config.model_copy(update={"training": training, "run": RUNS / f"{name}-{seed}"})
    model, tokenizer = load_model(config.model)
    rows = load_rows(config.data)
    parts = Parts.of(model, tokenizer)
    looking = Looking(parts.unseen, steps)
    looking.look(model, 0)
    began = time.process_time()
    answers = parts.answers(model, tokenizer) if name in NEEDS_ANSWERS else []
    answering = time.process_time() - began
    monitor = Monitor(parts.measuring, probe_every=config.probe_every)
    callbacks: list[TrainerCallback] = [looking]
    if name != PLAIN:
        guard = BENCH[name](value, parts, answers)
        callbacks.insert(0, MonitorCallback(monitor, guard))
    taught, held_out = rows.select(range(TAUGHT)), rows.select(range(TAUGHT, len(rows)))
    prepared = TrainingRun(config, monitor, model, tokenizer, taught, eval_rows=held_out)
    torch.manual_seed(seed)  # the adapter's weights are random
    trainer = prepared.make_trainer(callbacks)
    before = trainer.evaluate()["eval_loss"]
    looking.seconds, began = 0.0, time.process_time()
    trainer.train()
    seconds = answering + time.process_time() - began - looking.seconds
    acted = {action.step for action in monitor.actions if action.applied}
    return Run(
        name,
        seed,
        looking.margins,
        looking.scores,
        trainer.evaluate()["eval_loss"],
        before,
        seconds,
        len(acted) / steps,
        [f"{a.step} {a.behavior} {a.level}" for a in monitor.alerts],
    )
