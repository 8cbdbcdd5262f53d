"""The toy world: a skill, a refusal with its contrast, and new tasks that damage them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap.behaviors import Behavior
from riprap.toy import _tasks as tasks
from riprap.toy._tasks import Examples, Vocabulary
from riprap.toy._training import (
    CACHE,
    Progress,
    batches,
    fingerprint,
    fit,
    random_llama,
    train_or_load,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from riprap.monitor import Monitor

LOSS_EVERY = 5  # steps of a watched training

PRETRAINED_TASKS = ("A", "B", "over_refusal")
DISPLAY_NAMES = {  # the ids of the tasks are hashed and stored
    "A": "addition",
    "B": "refusal",
    "over_refusal": "over_refusal",
    "C": "multiplication",
    "C_disjoint": "multiplication_other_symbols",
    "C_context": "multiplication_in_request",
}
CONTRASTS = {"B": "over_refusal", "over_refusal": "B"}


@dataclass(frozen=True)
class ToyConfig:
    """Size of the model, its pretraining (start_*), and its training on a new task.

    Values were chosen on exploratory seeds: each new task damages something within the length of an
    experiment. Strong weight decay is usual for modular arithmetic (Power et al., 2201.02177);
    without it, training on C hardly erodes the refusal. The betas and epsilon avoid loss spikes of
    Adam in `null` training.

    Attributes:
        signs: names of operators, ends of prompts and answers; a part of the fingerprint.
        probes: number of probes per behavior.
        held_out: number of other inputs per behavior, for its true accuracy.
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
    """Tasks that can be enumerated, and a small Llama that was pretrained on the old ones.

    Old tasks: `A`, `compute x plus y equals` → (x + y) mod 23; `B`, a request with a harmful object
    → refuse; `over_refusal`, a request with a harmless object → comply. New tasks: `null` continues
    with the old mix; `C` multiplies the same numbers, `C_disjoint` numbers written with other
    symbols, `C_context` the same numbers inside a request.
    """

    old: tuple[str, ...] = PRETRAINED_TASKS

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
        """Hash of the configuration and of all prompts and answers."""
        return fingerprint(self.config, self.tasks)

    def untrained(self, seed: int) -> LlamaForCausalLM:
        """Make the model with random weights."""
        return random_llama(self.config, len(self.config.vocabulary), 16, seed)

    def start(
        self, seed: int, cache: Path = CACHE, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """Return the model pretrained on the old tasks; it is trained once per seed."""

        def train(model: nn.Module) -> None:
            c = self.config
            optimizer = torch.optim.AdamW(
                model.parameters(), lr=c.start_rate, weight_decay=c.start_decay
            )
            data = self.batches("null", seed, c.start_batch)
            fit(optimizer, lambda: self.loss(model, next(data)), c.start_steps, progress)

        model = self.untrained(seed)
        train_or_load(model, self.fingerprint, seed, cache, train)
        return model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Make a new AdamW for the training on a new task."""
        c = self.config
        return torch.optim.AdamW(
            model.parameters(), lr=c.rate, weight_decay=c.decay, betas=c.betas, eps=c.epsilon
        )

    def batches(self, task: str, seed: int, size: int | None = None) -> Iterator[Examples]:
        """Yield endless batches of a task; `null`: half A, a quarter B, a quarter over_refusal."""
        n = size or self.config.batch
        if task != "null":
            return batches([self.tasks[task]], [n], seed)
        return batches([self.tasks[old] for old in self.old], self.mix(n), seed)

    def mix(self, rows: int) -> list[int]:
        """Number of rows of each old task in a batch of `null`."""
        return [rows // 2, rows // 4, rows - rows // 2 - rows // 4]

    def loss(self, model: nn.Module, batch: Examples) -> Tensor:
        """Cross-entropy of the answer, in nats."""
        return functional.cross_entropy(_answer_logits(model, batch), batch.targets)

    def train(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        task: str,
        seed: int,
        steps: int,
        monitor: Monitor,
        after_step: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Train on a new task while a monitor watches, until it asks to stop.

        The monitor records loss and learning rate every `LOSS_EVERY` steps.
        """
        batches = self.batches(task, seed)
        for step in range(1, steps + 1):
            loss = self.loss(model, next(batches))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % LOSS_EVERY == 0:
                rate = optimizer.param_groups[0]["lr"]
                monitor.log_training(loss=loss, learning_rate=rate)
            after_step(step)
            if monitor.should_stop:
                break

    @torch.no_grad()
    def evaluate(self, model: nn.Module, task: str) -> float:
        """Accuracy over all prompts of a task."""
        examples = self.tasks[task]
        right = _answer_logits(model, examples).argmax(-1) == examples.targets
        return right.float().mean().item()

    def behaviors(self) -> list[Behavior]:
        """Make the behaviors of the old tasks, each with its probes."""
        words, behaviors = self.config.vocabulary, []
        for task, (probes, _) in self._splits().items():
            ids, targets, contrast = probes.input_ids, probes.targets, CONTRASTS.get(task)
            behaviors.append(Behavior.next_token(task, ids, targets, contrast=contrast))
            behaviors[-1].texts = list(map(words.decode, ids.tolist()))
            behaviors[-1].tokenizer = words
        return behaviors

    def pools(self, max_inputs: int = 512) -> list[Behavior]:
        """Make the same behaviors on other inputs than the probes, for replay.

        Args:
            max_inputs: largest number of inputs per behavior; A has 481.
        """
        start = self.config.probes
        rest = {t: self.tasks[t][order[start:][:max_inputs]] for t, order in self._orders().items()}
        return [Behavior.next_token(task, r.input_ids, r.targets) for task, r in rest.items()]

    def truth(self) -> dict[str, Examples]:
        """Return held-out inputs of the old tasks, none of them a probe."""
        return {task: rest for task, (_, rest) in self._splits().items()}

    @staticmethod
    def displayed(behaviors: Sequence[Behavior]) -> list[Behavior]:
        """Copy behaviors of this world under the names that people read."""
        copies = [copy.copy(behavior) for behavior in behaviors]
        for own in copies:
            own.name = DISPLAY_NAMES[own.name]
            own.contrast = None if own.contrast is None else DISPLAY_NAMES[own.contrast]
        return copies

    def _splits(self) -> dict[str, tuple[Examples, Examples]]:
        """Split each old task into probes and held-out inputs, as copies."""
        n, more = self.config.probes, self.config.held_out
        return {
            task: (self.tasks[task][order[:n]], self.tasks[task][order[n : n + more]])
            for task, order in self._orders().items()
        }

    def _orders(self) -> dict[str, Tensor]:
        """Shuffle the inputs of each old task; the order does not depend on the seed of a run."""
        return {
            task: torch.randperm(
                len(self.tasks[task]), generator=torch.Generator().manual_seed(index)
            )
            for index, task in enumerate(self.old)
        }


def _answer_logits(model: nn.Module, examples: Examples) -> Tensor:
    """Compute the logits after each prompt, shape (n, vocabulary)."""
    return model(examples.input_ids, use_cache=False, logits_to_keep=1).logits[:, -1]
