"""One run of the real model on the erosion example, under one guard, judged on unseen inputs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from riprap import guards, probing
from riprap.behaviors import Behavior, packs
from riprap.behaviors.openers import is_refusal
from riprap.detectors.track import score
from riprap.guards import Guard, Pools
from riprap.integrations.hf import MonitorCallback
from riprap.launch import WatchConfig
from riprap.launch.build import load_model, load_rows
from riprap.launch.run import Prepared
from riprap.monitor import Monitor
from riprap.studies.smollm2.rows import OPENER

EXAMPLE = Path("examples/smollm2-affirmative.yaml")
RUNS = Path("runs/smollm2-guarded")
PLAIN = "plain"
TAUGHT = 143  # rows of 175; the others tell how well the task was learned
PACKS = {"refusal": 120, "over_refusal": 120, "arithmetic": 40, "general_knowledge": 40}
MEASURING = {"refusal": 24, "over_refusal": 24, "arithmetic": 10, "general_knowledge": 10}
WITH_ANSWERS = ("refusal", "over_refusal")  # the others are choices, which nobody answers freely
UNSEEN = 32  # of a behaviour at the most: what is looked at so often must be cheap
ALONG_THE_WAY = 6  # steps between two looks at what nobody sees


@dataclass
class Parts:
    """Probes three ways: those that measure, those to be learned again, those that nobody sees."""

    measuring: list[Behavior] = field(default_factory=list)
    pools: list[Behavior] = field(default_factory=list)
    unseen: list[Behavior] = field(default_factory=list)
    prompts: dict[str, list[str]] = field(default_factory=dict)  # of the pools, as text

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any) -> Parts:
        """Those probes of the packs that the model passes, taken apart in a fixed order."""
        found = cls()
        for name, n in PACKS.items():
            full = packs.load(name, tokenizer, n, openers=[OPENER])
            order = np.random.default_rng(0).permutation(_passing(full, model)).tolist()
            own, rest = order[: MEASURING[name]], order[MEASURING[name] :]
            pool, unseen = rest[::2], rest[1::2][:UNSEEN]
            found.measuring.append(full.subset(own))
            found.pools.append(full.subset(pool))
            found.unseen.append(full.subset(unseen))
            rows = packs.spread(name, n)
            found.prompts[name] = [rows[i]["prompt"] for i in pool]
        return found

    def answers(self, model: nn.Module, tokenizer: Any) -> list[dict[str, torch.Tensor]]:
        """The model's own answers to the pools' prompts: refusals where they are due, else none."""
        prompts = [p for name in WITH_ANSWERS for p in self.prompts[name]]
        due = set(self.prompts["refusal"])
        mixed = [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))]
        return guards.own_answers(
            model,
            tokenizer,
            mixed,
            lambda prompt, said: is_refusal(said) == (prompt in due),
            measuring=self.measuring,
        )


def _passing(behavior: Behavior, model: nn.Module) -> list[int]:
    """Indices of the probes that the starting model passes; looked up once for all runs."""
    file = RUNS / f"passing-{behavior.name}.json"
    if not file.exists():
        margins = probing.look(behavior, model).margins
        file.write_text(json.dumps(np.flatnonzero(margins > 0).tolist()))
    found: list[int] = json.loads(file.read_text())
    return found


Answers = list[dict[str, torch.Tensor]]
Make = Callable[[float, Parts, Answers], Guard]

BENCH: dict[str, tuple[float, Make]] = {  # the knob's value, the guard
    "update_projection": (5, lambda v, parts, _: guards.UpdateProjection(refresh=int(v))),
    "safegrad": (1.0, lambda v, parts, _: guards.SafeGrad(strength=v)),
    "ewc_of_margins": (1.0, lambda v, parts, _: guards.EWC(strength=v, of="margin")),
    "kl": (1.0, lambda v, parts, _: guards.KL(strength=v)),
    "constrained_tokens": (
        1.0,
        lambda v, parts, answers: guards.ConstrainedTokens(answers, strength=v),
    ),
    "replay_of_answers": (
        0.5,
        lambda v, parts, answers: guards.Replay(answers, fraction=v, every=2),
    ),
    "replay_of_pools": (
        0.5,
        lambda v, parts, _: guards.Replay(Pools(parts.pools, rows=16), fraction=v, every=2),
    ),
    "keeper": (
        0.5,
        lambda v, parts, _: guards.Keeper(
            replay=guards.AdaptiveReplay(Pools(parts.pools, rows=16), fraction=v)
        ),
    ),
    "keeper_of_answers": (
        0.5,
        lambda v, parts, answers: guards.Keeper(replay=guards.Replay(answers, fraction=v, every=2)),
    ),
}
NEEDS_ANSWERS = ("constrained_tokens", "replay_of_answers", "keeper_of_answers")


@dataclass(frozen=True)
class Run:
    """What came of one run.

    Attributes:
        margins, scores: mean margin and score of each behaviour by step, on inputs nobody sees.
        task: nats a response token on rows that were not taught, at the end; `before`, at 0.
        seconds: processor time of training, guard, monitor and their start included.
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
        for behavior in self.unseen if ends else self.unseen[:2]:
            found = probing.look(behavior, model).margins
            self.margins[behavior.name][step] = float(found.mean())
            self.scores[behavior.name][step] = score(found)
        self.seconds += time.process_time() - began

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After every sixth step."""
        if state.global_step % ALONG_THE_WAY == 0:
            self.look(kwargs["model"], state.global_step)


def simulate(name: str, seed: int, steps: int) -> Run:
    """Make a run, or read it where it was made before."""
    file = RUNS / f"{name}-{seed}-{steps}.json"
    if file.exists():
        return Run.load(file)
    torch.set_num_threads(1)
    file.parent.mkdir(parents=True, exist_ok=True)
    run = _train(name, seed, steps)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(run)))
    partial.rename(file)
    return run


def _train(name: str, seed: int, steps: int) -> Run:
    config = WatchConfig.load(EXAMPLE)
    training = config.training.model_copy(update={"seed": seed, "steps": steps})
    config = config.model_copy(update={"training": training, "run": RUNS / f"{name}-{seed}"})
    model, tokenizer = load_model(config.model)
    rows = load_rows(config.data)
    parts = Parts.of(model, tokenizer)
    looking = Looking(parts.unseen, steps)
    looking.look(model, 0)
    answers = parts.answers(model, tokenizer) if name in NEEDS_ANSWERS else []
    monitor = Monitor(parts.measuring, every=config.every)
    callbacks: list[TrainerCallback] = [looking]
    if name != PLAIN:
        value, make = BENCH[name]
        callbacks.insert(0, MonitorCallback(monitor, make(value, parts, answers)))
    taught, held_out = rows.select(range(TAUGHT)), rows.select(range(TAUGHT, len(rows)))
    prepared = Prepared(config, monitor, model, tokenizer, taught, held_out=held_out)
    trainer = prepared.trainer(callbacks)
    before = trainer.evaluate()["eval_loss"]
    looking.seconds, began = 0.0, time.process_time()
    trainer.train()
    seconds = time.process_time() - began - looking.seconds
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
