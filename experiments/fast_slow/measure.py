"""Measures of a model in training: rewards, distance to the base, entropy, old behaviors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from experiments.worlds.verifiable import IGNORED, Problem, VerifiableWorld, proxy_reward, reward
from experiments.worlds.verifiable_text import joined
from riprap import evaluation
from riprap.detectors import score

NEW_TOKENS = 10  # the longest answer is a list of eight numbers


@dataclass
class Look:
    """Measures between two updates.

    Attributes:
        task: which is learned; `update`, `rollouts`: on it so far.
        rewards: expected reward of a sampled answer by part, mean over problems and instructions.
        best: the same with the instruction that is best over all parts.
        proxy, true: means of the proxy reward and of the reward, over sampled answers.
        kl: KL divergence from the model to the base on the same prompts, nats per sampled answer;
            `kl_plain`: with the empty instruction.
        kl_old: KL from the base at the first token of the answers to all probes, mean in nats.
        entropy: of the next token, mean over sampled answers, in nats.
        scores, margins: of each old behavior.
    """

    task: str
    update: int
    rollouts: int
    rewards: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    proxy: float = 0.0
    true: float = 0.0
    kl: float = 0.0
    kl_plain: float = 0.0
    kl_old: float = 0.0
    entropy: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    margins: dict[str, float] = field(default_factory=dict)

    @property
    def reward(self) -> float:
        """Mean reward: expected, over parts; of the proxy's task, the proxy's."""
        if self.task == "proxy":
            return self.proxy
        return sum(self.rewards.values()) / len(self.rewards)


class Meter:
    """Measures a model against its base, without a change of the training.

    Args:
        sampled: answers of each sample.
    """

    def __init__(self, world: VerifiableWorld, base: nn.Module, sampled: int) -> None:
        self.world, self.base, self.sampled = world, base, sampled
        self.behaviors = world.behaviors()
        self.asked = [ids for one in self.behaviors for ids in one.token_rows() or []]

    def __call__(
        self, model: nn.Module, instructions: Sequence[str], task: str, update: int, rollouts: int
    ) -> Look:
        """Measure a model on a task under the instructions in use."""
        problems = self.world.problems(task)
        look = Look(task, update, rollouts)
        with evaluation.preserve_training_state(model), torch.no_grad():
            evaluation.set_evaluation_mode(model)
            found = [self.world.expected_reward(model, problems, own) for own in instructions]
            look.rewards = {part: sum(one[part] for one in found) / len(found) for part in found[0]}
            look.best = max(found, key=lambda own: sum(own.values()))
            for behavior in self.behaviors:
                margins = evaluation.evaluate(behavior, model).margins
                look.scores[behavior.name] = score(margins)
                look.margins[behavior.name] = float(margins.mean())
            look.kl_old = self._old_kl(model)
            look.kl, look.entropy, answers, asked = self._sampled(model, instructions, problems)
            look.kl_plain = self._sampled(model, [""], problems)[0]
        look.true = _mean(reward(answers, [one.answer for one in asked]))
        look.proxy = _mean(proxy_reward(answers, [one.number for one in asked]))
        return look

    def _sampled(
        self, model: nn.Module, instructions: Sequence[str], problems: Sequence[Problem]
    ) -> tuple[float, float, list[str], list[Problem]]:
        """Sample answers; return KL to the base and entropy with them, and their problems."""
        tokenizer = self.world.tokenizer
        order = torch.randperm(len(problems), generator=torch.Generator().manual_seed(0)).tolist()
        asked = [problems[order[at % len(order)]] for at in range(self.sampled)]
        prompts = [
            joined(instructions[at % len(instructions)], one.question)
            for at, one in enumerate(asked)
        ]
        ids = [self.world.ids(prompt) for prompt in prompts]
        answers = evaluation.generate(
            model, tokenizer, ids, NEW_TOKENS, temperature=1.0, batch_size=len(ids)
        )
        batch = self.world.padded(ids, answers)
        now, then = (self._logs(own, batch) for own in (model, self.base))
        counted = (batch["labels"][:, 1:] != IGNORED).float()
        kl = ((now.exp() * (now - then)).sum(-1) * counted).sum(1).mean()
        entropy = (-(now.exp() * now).sum(-1) * counted).sum() / counted.sum()
        said = tokenizer.batch_decode(answers, skip_special_tokens=True)
        return float(kl), float(entropy), list(said), asked

    def _old_kl(self, model: nn.Module) -> float:
        batch = self.world.padded(
            self.asked, [[self.world.tokenizer.eos_token_id]] * len(self.asked)
        )
        counted = (batch["labels"][:, 1:] != IGNORED).float()
        then, now = (self._logs(own, batch) for own in (self.base, model))
        kl = ((then.exp() * (then - now)).sum(-1) * counted).sum() / counted.sum()
        return float(kl)

    @staticmethod
    def _logs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        logs: Tensor = logits[:, :-1].float().log_softmax(-1)
        return logs


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
