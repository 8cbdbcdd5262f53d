"""Guards for SmolLM2, and their probes and answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from experiments.smollm2.probes import load_refusals, passing
from riprap import guards
from riprap.behaviors import Behavior, is_refusal, probe_sets
from riprap.guards import Guard, SelfDistillationBuffer

PLAIN = "plain"
GUARDED = ("refusal", "over_refusal")
UNGUARDED = ("arithmetic", "general_knowledge")  # evaluated at both ends; no guard protects them
MEASURING, UNSEEN = 24, 32  # probes of a behavior; the others may be replayed
CHOICES = 20


@dataclass
class ProbeSplit:
    """Disjoint probes: monitored ones, replayed ones, and unseen ones."""

    measuring: list[Behavior] = field(default_factory=list)
    pools: list[Behavior] = field(default_factory=list)
    unseen: list[Behavior] = field(default_factory=list)
    prompts: dict[str, list[str]] = field(default_factory=dict)  # of the pools, as text

    @classmethod
    def load(cls, model: nn.Module, tokenizer: Any) -> ProbeSplit:
        """Split the probes that the model passes, in a fixed order."""
        split = cls()
        for name in GUARDED:
            rows = probe_sets.rows(name)
            full = load_refusals(name, tokenizer)
            order = np.random.default_rng(0).permutation(passing(full, model)).tolist()
            measuring, rest = order[:MEASURING], order[MEASURING:]
            unseen, pool = rest[:UNSEEN], rest[UNSEEN:]
            split.measuring.append(full.subset(measuring))
            split.pools.append(full.subset(pool))
            split.unseen.append(full.subset(unseen))
            split.prompts[name] = [rows[i]["prompt"] for i in pool]
        for name in UNGUARDED:
            full = probe_sets.load(name, tokenizer, CHOICES)
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


Answers = list[dict[str, Tensor]]
Make = Callable[[float, ProbeSplit, Answers], Guard]

GUARDS: dict[str, Make] = {
    "constrained_tokens": lambda v, _, answers: guards.ConstrainedTokens(answers, strength=v),
    "replay_of_answers": lambda v, _, answers: guards.Replay(answers, fraction=v, every=2),
    "replay_of_pools": lambda v, parts, _: guards.Replay(parts.buffer(), fraction=v, every=2),
    "keeper": lambda v, parts, _: guards.AutoGuard(
        replay=guards.AdaptiveReplay(parts.buffer(), fraction=v)
    ),
}
NEEDS_ANSWERS = ("constrained_tokens", "replay_of_answers")
