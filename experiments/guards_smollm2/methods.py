"""The guards that are tried on the real model, and what they are given."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from experiments.smollm2.rows import OPENER
from riprap import evaluation as probing
from riprap import guards
from riprap.behaviors import Behavior, is_refusal, probe_sets
from riprap.guards import Guard, SelfDistillationBuffer

RUNS = Path("runs/guarded")
PLAIN = "plain"
GUARDED = ("refusal", "over_refusal")
ONLY_LOOKED_AT = ("arithmetic", "general_knowledge")  # at both ends: nothing guards these
MEASURING, UNSEEN = 24, 32  # probes of a behaviour; the others are learned again
CHOICES = 20


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
        for name in GUARDED:
            rows = probe_sets.rows(name)
            full = probe_sets.load(name, tokenizer, prefixes=[OPENER])
            order = np.random.default_rng(0).permutation(_passing(full, model)).tolist()
            measuring, rest = order[:MEASURING], order[MEASURING:]
            unseen, pool = rest[:UNSEEN], rest[UNSEEN:]
            found.measuring.append(full.subset(measuring))
            found.pools.append(full.subset(pool))
            found.unseen.append(full.subset(unseen))
            found.prompts[name] = [rows[i]["prompt"] for i in pool]
        for name in ONLY_LOOKED_AT:
            full = probe_sets.load(name, tokenizer, CHOICES)
            found.unseen.append(full.subset(_passing(full, model)))
        return found

    def spare(self) -> SelfDistillationBuffer:
        """What is learned again, sixteen examples at a time."""
        return SelfDistillationBuffer(self.pools, batch_size=16)

    def answers(self, model: nn.Module, tokenizer: Any) -> list[dict[str, Tensor]]:
        """The model's own answers to the pools' prompts: refusals where they are due, else none."""
        prompts = [p for name in GUARDED for p in self.prompts[name]]
        due = set(self.prompts["refusal"])
        mixed = [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))]
        return guards.self_generated_examples(
            model,
            tokenizer,
            mixed,
            lambda prompt, said: is_refusal(said) == (prompt in due),
            monitored=self.measuring,
        )


def _passing(behavior: Behavior, model: nn.Module) -> list[int]:
    """Indices of the probes that the starting model passes; looked up once for all runs."""
    file = RUNS / f"passing-{behavior.name}.json"
    if not file.exists():
        margins = probing.evaluate(behavior, model).margins
        RUNS.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(np.flatnonzero(margins > 0).tolist()))
        partial.rename(file)
    found: list[int] = json.loads(file.read_text())
    return found


Answers = list[dict[str, Tensor]]
Make = Callable[[float, Parts, Answers], Guard]

BENCH: dict[str, Make] = {
    "constrained_tokens": lambda v, _, answers: guards.ConstrainedTokens(answers, strength=v),
    "replay_of_answers": lambda v, _, answers: guards.Replay(answers, fraction=v, every=2),
    "replay_of_pools": lambda v, parts, _: guards.Replay(parts.spare(), fraction=v, every=2),
    "keeper": lambda v, parts, _: guards.AutoGuard(
        replay=guards.AdaptiveReplay(parts.spare(), fraction=v)
    ),
}
NEEDS_ANSWERS = ("constrained_tokens", "replay_of_answers")
