"""Measures of a model in training: rewards, distance to the base, entropy, old behaviors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from experiments.worlds.verifiable import IGNORED, Problem, VerifiableWorld, proxy_reward, reward
from experiments.worlds.verifiable_text import joined
from riprap import evaluation
from riprap.behaviors import Behavior
from riprap.detectors import score

NEW_TOKENS = 10  # the longest answer is a list of eight numbers


@dataclass
class Measurement:
    """Measures between two updates. "In use" is the mean over the instructions in use.

    Attributes:
        task: which is learned; `update`, `rollouts`: on it so far.
        rewards: expected reward of a sampled answer by part, mean over problems, in use.
        best: the same with the instruction that is best over all parts.
        text: that of the base in use: what the instructions carry without the training.
        weights: that of the model without an instruction: what the weights carry.
        proxy, true: means of the proxy reward and of the reward, over sampled answers.
        kl: KL divergence from the model to the base, nats per sampled answer, both with the same
            instruction in use; `kl_plain`: both without; `kl_total`: the model in use, the base
            without, so that it counts what an instruction changes.
        kl_old: from the model to the base at the first token of the answers to all probes, in nats.
        entropy: of the next token, mean over sampled answers in use, in nats.
        scores, margins: of each old behavior without an instruction; `used_scores`,
            `used_margins`: with the best instruction in use before each probe.
        brevity: score of the habit of short answers, where the reward is the proxy.
    """

    task: str
    update: int
    rollouts: int
    rewards: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    text: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    proxy: float = 0.0
    true: float = 0.0
    kl: float = 0.0
    kl_plain: float = 0.0
    kl_total: float = 0.0
    kl_old: float = 0.0
    entropy: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    margins: dict[str, float] = field(default_factory=dict)
    used_scores: dict[str, float] = field(default_factory=dict)
    used_margins: dict[str, float] = field(default_factory=dict)
    brevity: float | None = None

    @property
    def reward(self) -> float:
        """Mean reward: expected, over parts; of the proxy's task, the proxy's."""
        return self.proxy if self.task == "proxy" else mean(list(self.rewards.values()))


@dataclass
class _Sampled:
    """Figures of sampled answers, the answers, and their problems."""

    kl: float
    kl_total: float
    entropy: float
    answers: list[str]
    asked: list[Problem]


class Meter:
    """Measures a model against its base, without a change of the training.

    Args:
        sampled: answers of each sample.
    """

    def __init__(self, world: VerifiableWorld, base: nn.Module, sampled: int) -> None:
        self.world, self.base, self.sampled = world, base, sampled
        self.behaviors, self.brevity = world.behaviors(), world.brevity()
        self.asked = [ids for one in self.behaviors for ids in one.token_rows() or []]
        self._of_base: dict[tuple[str, str], dict[str, float]] = {}

    def __call__(
        self, model: nn.Module, instructions: Sequence[str], task: str, update: int, rollouts: int
    ) -> Measurement:
        """Measure a model on a task under the instructions in use."""
        problems, world = self.world.problems(task), self.world
        done, plain = Measurement(task, update, rollouts), list(instructions) == [""]
        with evaluation.preserve_training_state(model), torch.no_grad():
            evaluation.set_evaluation_mode(model)
            found = [world.expected_reward(model, problems, own) for own in instructions]
            best = max(range(len(found)), key=lambda at: sum(found[at].values()))
            done.rewards, done.best = _by_part(found), found[best]
            done.text = _by_part([self._base_reward(task, own) for own in instructions])
            done.weights = found[0] if plain else world.expected_reward(model, problems)
            done.scores, done.margins = _kept(model, self.behaviors)
            used = done.scores, done.margins
            if not plain:
                used = _kept(model, self.world.behaviors(instructions[best]))
            done.used_scores, done.used_margins = used
            if task == "proxy":
                done.brevity = score(evaluation.evaluate(self.brevity, model).margins)
            done.kl_old = self._old_kl(model)
            sampled = self._sampled(model, instructions, problems)
            done.kl, done.kl_total, done.entropy = sampled.kl, sampled.kl_total, sampled.entropy
            done.kl_plain = sampled.kl if plain else self._sampled(model, [""], problems).kl
        asked = sampled.asked
        done.true = mean(reward(sampled.answers, [one.answer for one in asked]))
        done.proxy = mean(proxy_reward(sampled.answers, [one.number for one in asked]))
        return done

    def _base_reward(self, task: str, instruction: str) -> dict[str, float]:
        """Return the expected reward of the base, which stays the same."""
        asked = task, instruction
        if asked not in self._of_base:
            problems = self.world.problems(task)
            self._of_base[asked] = self.world.expected_reward(self.base, problems, instruction)
        return self._of_base[asked]

    def _sampled(
        self, model: nn.Module, instructions: Sequence[str], problems: Sequence[Problem]
    ) -> _Sampled:
        tokenizer = self.world.tokenizer
        order = torch.randperm(len(problems), generator=torch.Generator().manual_seed(0)).tolist()
        asked = [problems[order[at % len(order)]] for at in range(self.sampled)]
        plain = [self.world.ids(one.question) for one in asked]
        ids = [
            self.world.ids(joined(instructions[at % len(instructions)], one.question))
            for at, one in enumerate(asked)
        ]
        answers = evaluation.generate(
            model, tokenizer, ids, NEW_TOKENS, temperature=1.0, batch_size=len(ids)
        )
        now, then = (self._logs(own, ids, answers) for own in (model, self.base))
        before = self._logs(self.base, plain, answers)
        n = len(asked)
        kl, total = (float((now.exp() * (now - other)).sum()) / n for other in (then, before))
        said = tokenizer.batch_decode(answers, skip_special_tokens=True)
        return _Sampled(kl, total, float(-(now.exp() * now).sum()) / len(now), list(said), asked)

    def _old_kl(self, model: nn.Module) -> float:
        ends = [[self.world.tokenizer.eos_token_id]] * len(self.asked)
        now, then = (self._logs(own, self.asked, ends) for own in (model, self.base))
        return float((now.exp() * (now - then)).sum()) / len(now)

    def _logs(
        self, model: nn.Module, prompts: Sequence[list[int]], answers: Sequence[list[int]]
    ) -> Tensor:
        """Return log probabilities at each token of the answers, shape (tokens, vocabulary)."""
        batch = self.world.padded(prompts, answers)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        logs: Tensor = logits[:, :-1][batch["labels"][:, 1:] != IGNORED].float().log_softmax(-1)
        return logs


def _kept(
    model: nn.Module, behaviors: Sequence[Behavior]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return score and mean margin of each behavior."""
    found = {own.name: evaluation.evaluate(own, model).margins for own in behaviors}
    return (
        {name: score(margins) for name, margins in found.items()},
        {name: float(margins.mean()) for name, margins in found.items()},
    )


def _by_part(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {part: mean([one[part] for one in found]) for part in found[0]}


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one number."""
    return sum(values) / len(values)
