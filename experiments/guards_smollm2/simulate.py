"""One run of SmolLM2 on the erosion example under one guard, evaluated on unseen probes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from experiments.guards_smollm2.plan import Plan
from experiments.harness.cache import RUNS, cached
from experiments.smollm2.checkpoints import answers_to, behaves
from experiments.smollm2.teaching import load_refusals, passing
from experiments.worlds import first_probe_sets
from riprap import evaluation, guards, signals
from riprap.behaviors import Behavior, is_refusal
from riprap.commands.watch import TrainingRun, WatchConfig, load_model, load_rows
from riprap.detectors import score
from riprap.guards import Guard, SelfDistillationBuffer
from riprap.integrations.hf import MonitorCallback
from riprap.monitor import Monitor

PLAIN = "plain"
GUARDED = ("refusal", "over_refusal")
UNGUARDED = ("arithmetic", "general_knowledge")  # evaluated at both ends; no guard protects them
MEASURING, UNSEEN = 24, 32  # probes of a behavior; the others may be replayed
JUDGED, NEW_TOKENS = 24, 24  # unseen prompts of a behavior that are answered, and tokens of each
CHOICES = 20
Shares = dict[str, float]  # by behavior


@dataclass
class ProbeSplit:
    """Disjoint probes: monitored ones, replayed ones, and unseen ones."""

    measuring: list[Behavior] = field(default_factory=list)
    pools: list[Behavior] = field(default_factory=list)
    unseen: list[Behavior] = field(default_factory=list)
    prompts: dict[str, list[str]] = field(default_factory=dict)  # of the pools, as text
    asked: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # some unseen rows

    @classmethod
    def load(cls, model: nn.Module, tokenizer: Any) -> ProbeSplit:
        """Split the probes that the model passes, in a fixed order."""
        split = cls()
        for name in GUARDED:
            rows = first_probe_sets.rows(name)
            full = load_refusals(name, tokenizer)
            order = np.random.default_rng(0).permutation(passing(full, model)).tolist()
            measuring, rest = order[:MEASURING], order[MEASURING:]
            unseen, pool = rest[:UNSEEN], rest[UNSEEN:]
            split.measuring.append(full.subset(measuring))
            split.pools.append(full.subset(pool))
            split.unseen.append(full.subset(unseen))
            split.prompts[name] = [rows[i]["prompt"] for i in pool]
            split.asked[name] = [rows[i] for i in unseen[:JUDGED]]
        for name in UNGUARDED:
            full = first_probe_sets.load(name, tokenizer, CHOICES)
            split.unseen.append(full.subset(passing(full, model)))
        return split

    def buffer(self) -> SelfDistillationBuffer:
        """Return the replayed probes in batches of sixteen."""
        return SelfDistillationBuffer(self.pools, batch_size=16)

    def answers(self, model: nn.Module, tokenizer: Any) -> list[dict[str, Tensor]]:
        """Generate the model's answers to replayed prompts, and keep those that behave rightly."""
        prompts = [p for name in GUARDED for p in self.prompts[name]]
        harmful = set(self.prompts["refusal"])
        mixed = [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))]
        return guards.self_generated_examples(
            model,
            tokenizer,
            mixed,
            lambda prompt, answer: is_refusal(answer) == (prompt in harmful),
            monitored=self.measuring,
        )


@cached("guards_smollm2/judged-{plan.terms}.json")
def judged_before(probes: ProbeSplit, model: nn.Module, tokenizer: Any, plan: Plan) -> Shares:
    """Return what `judged` finds at the start, which all runs share."""
    return judged(probes, model, tokenizer)


def judged(probes: ProbeSplit, model: nn.Module, tokenizer: Any) -> Shares:
    """Return the share of unseen prompts whose generated answer is right, by behavior."""
    shares = {}
    for name, rows in probes.asked.items():
        said = answers_to(model, tokenizer, rows, NEW_TOKENS)
        right = [behaves(name, row, answer) for row, answer in zip(rows, said, strict=True)]
        shares[name] = sum(right) / len(right)
    return shares


Answers = list[dict[str, Tensor]]
Make = Callable[[float, ProbeSplit, Answers], Guard]

GUARDS: dict[str, Make] = {
    "constrained_tokens": lambda v, _, answers: guards.ConstrainedTokens(answers, strength=v),
    "replay_of_answers": lambda v, _, answers: guards.Replay(answers, fraction=v, every=2),
    "replay_of_pools": lambda v, parts, _: guards.Replay(parts.buffer(), fraction=v, every=2),
    "auto_guard": lambda _, parts, __: guards.AutoGuard(replay=parts.buffer()),  # its default
}
NEEDS_ANSWERS = ("constrained_tokens", "replay_of_answers")
EXAMPLE = Path("experiments/smollm2/affirmative.yaml")
TAUGHT = 143  # rows of 175; the others tell how well the task was learned
EVALUATE_EVERY = 6  # steps between two looks at what nobody sees


@dataclass(frozen=True)
class Run:
    """Results of one run.

    Attributes:
        margins, scores: mean margin and score of each behavior by step, on unseen probes.
        judged: share of unseen prompts whose generated answer is right, by step: 0 and the last.
        task: loss on held-out rows at the end, in nats a response token; `before`: at step 0.
        seconds: processor time of training, with guard and monitor and their start.
        acted: share of the steps that the guard changed.
    """

    guard: str
    seed: int
    margins: dict[str, dict[int, float]]
    scores: dict[str, dict[int, float]]
    judged: dict[str, dict[int, float]]
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


@cached("guards_smollm2/{plan.terms}-{name}-{seed}.json")
def simulate(name: str, value: float, seed: int, plan: Plan) -> Run:
    """Train under one guard, its main parameter at a value."""
    steps = plan.steps
    config = WatchConfig.load(EXAMPLE)
    training = config.training.model_copy(update={"seed": seed, "max_steps": steps})
    folder = RUNS / f"guards_smollm2/{name}-{seed}"
    config = config.model_copy(update={"training": training, "run_dir": folder})
    model, tokenizer = load_model(config.model)
    rows = load_rows(config.data)
    probes = ProbeSplit.load(model, tokenizer)
    unseen = UnseenProbes(probes.unseen, steps)
    unseen.evaluate(model, 0)
    start = judged_before(probes, model, tokenizer, plan)
    began = time.process_time()
    answers = probes.answers(model, tokenizer) if name in NEEDS_ANSWERS else []
    answering = time.process_time() - began
    monitor = Monitor(
        probes.measuring, probe_every=config.probe_every, signals=signals.per_step(), budget=None
    )
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
    assert trainer.model is not None
    end = judged(probes, trainer.model, tokenizer)
    acted = {action.step for action in monitor.actions if action.applied}
    return Run(
        name,
        seed,
        unseen.margins,
        unseen.scores,
        {name: {0: start[name], steps: end[name]} for name in start},
        trainer.evaluate()["eval_loss"],
        before,
        seconds,
        len(acted) / steps,
        [f"{a.step} {a.behavior} {a.level}" for a in monitor.alerts],
    )
