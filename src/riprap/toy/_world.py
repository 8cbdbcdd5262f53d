"""The toy world: a capability, a refusal and its contrast, and new tasks that endanger them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from riprap.behaviors import Behavior
from riprap.toy import _tasks as tasks
from riprap.toy._tasks import Examples, Vocabulary
from riprap.toy._training import CACHE, Progress, batches, cached, fingerprint

OLD = ("A", "B", "over_refusal")  # what the start knows
CONTRASTS = {"B": "over_refusal", "over_refusal": "B"}


@dataclass(frozen=True)
class ToyConfig:
    """Sizes of the model, how its start is trained, and how it is trained further.

    Chosen on exploratory seeds so that each new task washes something away within a study's window.
    A strong weight decay is usual for modular arithmetic (Power et al., 2201.02177); without it the
    refusal hardly erodes under C. The betas and epsilon keep `null` free of Adam's own spikes.

    Attributes:
        signs: names of the operators, ends of prompts and answers; a part of the world's identity.
        probes, held_out: how many probes a behaviour has, and how many other inputs tell its truth.
    """

    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    hidden: int = 64
    feed_forward: int = 128
    layers: int = 2
    heads: int = 4
    initial_range: float = 0.1
    start_steps: int = 600
    start_batch: int = 128
    start_rate: float = 4e-3
    start_decay: float = 0.01
    batch: int = 64
    rate: float = 5e-4
    decay: float = 0.6
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-5
    signs: tuple[str, ...] = tasks.SIGNS
    probes: int = 48
    held_out: int = 256


class ToyWorld:
    """Tasks whose truth is known, and a small Llama that has learned the old ones.

    A: `compute x plus y equals` → (x + y) mod 23. B: a request with a harmful object → REFUSE.
    over_refusal: one with a harmless object → COMPLY. New tasks: `null` goes on with the old mix;
    `C` multiplies the same numbers, `C_disjoint` other ones, `C_context` the same inside a request.
    """

    old: tuple[str, ...] = OLD

    def __init__(self, config: ToyConfig | None = None) -> None:
        self.config = config or ToyConfig()
        words = self.config.vocabulary
        self.tasks = {
            "A": tasks.addition(words),
            "B": tasks.requests(words, "harmful"),
            "over_refusal": tasks.requests(words, "harmless"),
            "C": tasks.multiplication(words),
            "C_disjoint": tasks.multiplication(words, disjoint=True),
            "C_context": tasks.multiplication_in_request(words),
        }

    @cached_property
    def fingerprint(self) -> str:
        """What identifies this world: see `training.fingerprint`."""
        return fingerprint(self.config, self.tasks)

    def untrained(self, seed: int) -> LlamaForCausalLM:
        """The model with random weights."""
        c = self.config
        settings = LlamaConfig(
            vocab_size=len(c.vocabulary),
            hidden_size=c.hidden,
            intermediate_size=c.feed_forward,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.heads,
            max_position_embeddings=16,
            tie_word_embeddings=False,
            use_cache=False,
            initializer_range=c.initial_range,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(settings).float()

    def start(
        self, seed: int, cache: Path = CACHE, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """The model after it has learned the old tasks; trained once a seed."""

        def train(model: nn.Module) -> None:
            c = self.config
            optimizer = torch.optim.AdamW(
                model.parameters(), lr=c.start_rate, weight_decay=c.start_decay
            )
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda k: min(1.0, (k + 1) / 50) * max(0.02, 1 - k / c.start_steps)
            )
            data = self.batches("null", seed, c.start_batch)
            for step in range(c.start_steps):
                self.loss(model, next(data)).backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                if progress is not None:
                    progress(step + 1, c.start_steps)

        model = self.untrained(seed)
        cached(model, self.fingerprint, seed, cache, train)
        return model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """A fresh AdamW for the new task."""
        c = self.config
        return torch.optim.AdamW(
            model.parameters(), lr=c.rate, weight_decay=c.decay, betas=c.betas, eps=c.epsilon
        )

    def batches(self, task: str, seed: int, size: int | None = None) -> Iterator[Examples]:
        """Endless batches of a task; `null` is half A, a quarter B, a quarter over_refusal."""
        n = size or self.config.batch
        if task != "null":
            return batches([self.tasks[task]], [n], seed)
        return batches([self.tasks[old] for old in self.old], self.mix(n), seed)

    def mix(self, rows: int) -> list[int]:
        """How many rows of a batch are of each old task."""
        return [rows // 2, rows // 4, rows - rows // 2 - rows // 4]

    def loss(self, model: nn.Module, batch: Examples) -> Tensor:
        """Cross-entropy of the answer, in nats."""
        return functional.cross_entropy(_answer_logits(model, batch), batch.targets)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, task: str) -> float:
        """Accuracy over everything that can be asked in a task."""
        examples = self.tasks[task]
        right = _answer_logits(model, examples).argmax(-1) == examples.targets
        return right.float().mean().item()

    def behaviors(self) -> list[Behavior]:
        """The old tasks as behaviours, each on its probes."""
        return [
            Behavior.next_token(
                task, probes.input_ids, probes.targets, contrast=CONTRASTS.get(task)
            )
            for task, (probes, _) in self._splits().items()
        ]

    def pools(self, most: int = 512) -> list[Behavior]:
        """The same behaviours on other inputs than the probes, to be learned again.

        Args:
            most: how many inputs of each; A has 481 in all.
        """
        found = []
        for index, task in enumerate(self.old):
            examples = self.tasks[task]
            order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(index))
            rest = examples[order[self.config.probes :][:most]]
            found.append(Behavior.next_token(task, rest.input_ids, rest.targets))
        return found

    def truth(self) -> dict[str, Examples]:
        """Inputs of the old tasks that are no probes."""
        return {task: rest for task, (_, rest) in self._splits().items()}

    def _splits(self) -> dict[str, tuple[Examples, Examples]]:
        """Probes and other inputs of each old task; the same for every seed of a run."""
        splits = {}
        for index, task in enumerate(self.old):
            examples = self.tasks[task]
            generator = torch.Generator().manual_seed(index)
            order = torch.randperm(len(examples), generator=generator)
            n, more = self.config.probes, self.config.held_out
            splits[task] = examples[order[:n]], examples[order[n : n + more]]
        return splits


def _answer_logits(model: nn.Module, examples: Examples) -> Tensor:
    """Logits after each prompt, shape (n, vocabulary)."""
    return model(examples.input_ids, use_cache=False, logits_to_keep=1).logits[:, -1]
