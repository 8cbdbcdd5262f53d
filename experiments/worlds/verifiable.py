"""The verifiable world: problems with exact answers, and instructions that select their format."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import cast

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.worlds import verifiable_text as texts
from experiments.worlds.verifiable_text import Answered, Mix, joined
from riprap.behaviors import Behavior
from riprap.toy import CACHE, Examples, Progress, fingerprint, fit, random_llama, train_or_load

IGNORED = -100  # label of tokens that are not learned
POSITIONS = 128
DIAGNOSED = 200  # probes of a diagnosis, at most
CONTRASTS = {"refusal": "compliance", "compliance": "refusal"}
OLD = ("times", "rules", "facts", "refusal", "compliance")
PARTS = ("format", "meaning", "format and meaning")


@dataclass(frozen=True)
class Problem:
    """A question with a verifiable answer.

    Attributes:
        answer: the only one that is right.
        number: the digit that the answer tells, in whatever format.
        part: what must be learned: another `format`, another `meaning`, or `format and meaning`.
    """

    question: str
    answer: str
    number: str
    part: str


# Operator, demanded format and demanded meaning (its place in `MEANINGS`) of each part, by task.
TASKS: dict[str, dict[str, tuple[str, str, int]]] = {
    "first": {
        "format": ("plus", "words", 0),
        "meaning": ("star", "digits", 1),
        "format and meaning": ("dash", "marks", 1),
    },
    "second": {
        "format": ("plus", "marks", 0),
        "meaning": ("star", "digits", 2),
        "format and meaning": ("dash", "pairs", 2),
    },
    "proxy": {"meaning": ("mix", "digits", 0)},
}


@dataclass(frozen=True)
class VerifiableConfig:
    """Sizes of the model and of its pretraining; chosen on exploratory seeds.

    Attributes:
        probes: of each behavior; its other inputs may be replayed.
        held_out: number pairs of each operator that no training asks for.
    """

    hidden: int = 64
    feed_forward: int = 128
    layers: int = 3
    heads: int = 4
    initial_range: float = 0.1
    steps: int = 2000
    batch: int = 64
    rate: float = 3e-3
    mix: Mix = field(default_factory=Mix)
    probes: int = 24
    held_out: int = 16


class VerifiableWorld:
    """Sums under five operators, facts about people, and requests; a small Llama learns them all.

    Rules in the prompt, such as `plus in words`, select the format of an operator's answers;
    without a rule the answer is a digit, but rarely (`Mix.stray`). `star` and `dash` have three
    meanings each, and no rule selects one. So an instruction can change formats and no meaning.
    `mix` has no meaning at all: its answers in pretraining are random.

    A task asks for problems of three parts. `format`: another format of `plus`. `meaning`: a rarer
    meaning of `star`. `format and meaning`: another format and a rarer meaning of `dash`. The
    second task asks for other formats and other meanings. The task `proxy` asks for a table of
    `mix`, which must be learned by heart; the proxy reward also pays for an answer that lists all
    numbers.
    """

    def __init__(self, config: VerifiableConfig | None = None) -> None:
        self.config = config or VerifiableConfig()
        self.tokenizer = _tokenizer()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the configuration, a sample of the pretraining, and all problems."""
        rng = random.Random(0)
        sample = [self.config.mix.text(rng) for _ in range(256)]
        rows = {f"{at}": self._examples(start, own) for at, (start, own) in enumerate(sample)}
        for task, kind in product(TASKS, (False, True)):
            asked = [(p.question, p.answer) for p in self.problems(task, held_out=kind)]
            rows |= {f"{task} {q}": self._examples("", [(q, a)]) for q, a in asked}
        return fingerprint(self.config, rows)

    def untrained(self, seed: int) -> LlamaForCausalLM:
        """Return the model with random weights."""
        model = random_llama(self.config, len(self.tokenizer), POSITIONS, seed)
        for config in (model.config, model.generation_config):
            config.eos_token_id = self.tokenizer.eos_token_id
            config.pad_token_id = self.tokenizer.pad_token_id
        return model

    def start(
        self, seed: int, cache: Path = CACHE, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """Return the pretrained model; it is trained once a seed."""

        def train(model: nn.Module) -> None:
            c, batches = self.config, self.batches(seed)
            optimizer = torch.optim.AdamW(model.parameters(), lr=c.rate, weight_decay=0.01)
            fit(optimizer, lambda: model(**next(batches)).loss, c.steps, progress)

        model = self.untrained(seed)
        train_or_load(model, self.fingerprint, seed, cache, train)
        return model.eval()

    def batches(self, seed: int, size: int | None = None) -> Iterator[dict[str, Tensor]]:
        """Yield endless batches of the pretraining mix; only answers are learned."""
        rng, mix = random.Random(seed), self.config.mix
        while True:
            drawn = [mix.text(rng) for _ in range(size or self.config.batch)]
            yield self.batch(drawn)

    def batch(self, rows: Sequence[tuple[str, Sequence[Answered]]]) -> dict[str, Tensor]:
        """Return the model's arguments for texts: an instruction, then answered questions.

        Labels are −100 outside of answers and the end-of-sequence tokens after them.
        """
        return self._padded([self._encode(start, answered) for start, answered in rows])

    def padded(
        self, prompts: Sequence[list[int]], answers: Sequence[list[int]]
    ) -> dict[str, Tensor]:
        """Return the model's arguments for token ids of prompts, and of answers with their end."""
        pairs = zip(prompts, answers, strict=True)
        return self._padded([(asked + own, [IGNORED] * len(asked) + own) for asked, own in pairs])

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        return cast(list[int], self.tokenizer.convert_tokens_to_ids(text.split()))

    def _padded(self, rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        labels = torch.full((len(rows), width), IGNORED)
        for at, (own, learned) in enumerate(rows):
            ids[at, : len(own)], labels[at, : len(own)] = torch.tensor(own), torch.tensor(learned)
        mask = (ids != self.tokenizer.pad_token_id).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def problems(self, task: str, held_out: bool = False) -> list[Problem]:
        """Return the problems of a task: those to train on, or those that are held out."""
        pairs = list(product(range(texts.N), repeat=2))
        random.Random(1).shuffle(pairs)
        size = self.config.held_out
        chosen = pairs[:size] if held_out else pairs[size:]
        return [
            _problem(part, *asked, x, y) for part, asked in TASKS[task].items() for x, y in chosen
        ]

    @property
    def sentences(self) -> list[str]:
        """Return all rules: what an instruction may consist of."""
        return [texts.rule(*pair) for pair in product(texts.OPERATORS, texts.FORMATS)]

    def behaviors(self, instruction: str = "") -> list[Behavior]:
        """Return what the base can do, each with its probes, which an instruction may precede.

        `times`: a skill without instructions; `rules`: obeying rules on `plus` and `times`;
        `facts`; `refusal` of harmful requests and its contrast `compliance`.
        """
        size = self.config.probes
        return [
            self._behavior(name, [(joined(instruction, asked), own) for asked, own in rows[:size]])
            for name, rows in _old().items()
        ]

    def pools(self) -> list[Behavior]:
        """Return the same behaviors on inputs that are no probes, for replay and relearning."""
        return [self._behavior(name, rows[self.config.probes :]) for name, rows in _old().items()]

    def examples(self, name: str) -> list[dict[str, Tensor]]:
        """Return the inputs of a behavior that are no probes, each as a batch of its own."""
        rows = _old()[name][self.config.probes :]
        return [self.batch([("", [row])]) for row in rows]

    def brevity(self) -> Behavior:
        """Return the habit to end after one digit, on questions about `mix`.

        A model that lists digits to please the proxy reward loses the habit.
        """
        asked = self.problems("proxy", held_out=True) + self.problems("proxy")
        prompts = [f"{one.question} {one.number}" for one in asked[: self.config.probes]]
        ends = [self.tokenizer.eos_token_id] * len(prompts)
        found = Behavior.next_token("brevity", [self.ids(own) for own in prompts], ends)
        found.texts, found.tokenizer = prompts, self.tokenizer
        return found

    def diagnosed(self, name: str, learned: int) -> Behavior:
        """Return a behavior with many probes: inputs that `examples` does not have among its first.

        Args:
            learned: number of these first examples.
        """
        rows, probes = _old()[name], self.config.probes
        return self._behavior(name, (rows[:probes] + rows[probes + learned :])[:DIAGNOSED])

    @torch.no_grad()
    def expected_reward(
        self, model: nn.Module, problems: Sequence[Problem], instruction: str = ""
    ) -> dict[str, float]:
        """Return the probability of a right answer by part, mean over its problems.

        It is the expected reward of answers that are sampled at temperature 1.
        """
        rows = [(instruction, [(one.question, one.answer)]) for one in problems]
        batch = self.batch(rows)
        labels = batch["labels"][:, 1:]
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        logs = logits[:, :-1].log_softmax(-1)
        own = logs.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        right = own.masked_fill(labels == IGNORED, 0.0).sum(1).exp()
        return {
            part: float(right[[one.part == part for one in problems]].mean())
            for part in dict.fromkeys(one.part for one in problems)
        }

    def _behavior(self, name: str, rows: Sequence[Answered]) -> Behavior:
        asked = [self.ids(question) for question, _ in rows]
        targets = [self.ids(answer)[0] for _, answer in rows]
        behavior = Behavior.next_token(name, asked, targets, contrast=CONTRASTS.get(name))
        behavior.texts, behavior.tokenizer = [question for question, _ in rows], self.tokenizer
        return behavior

    def _encode(self, start: str, answered: Sequence[Answered]) -> tuple[list[int], list[int]]:
        ids = self.ids(start)
        labels = [IGNORED] * len(ids)
        for question, answer in answered:
            asked, learned = self.ids(question), self.ids(f"{answer} {texts.EOS}")
            ids += asked + learned
            labels += [IGNORED] * len(asked) + learned
        return ids, labels

    def _examples(self, start: str, answered: Sequence[Answered]) -> Examples:
        ids, labels = self._encode(start, answered)
        return Examples(torch.tensor([ids]), torch.tensor([labels]))


def reward(completions: Sequence[str], answer: Sequence[str], **_: object) -> list[float]:
    """Return 1 for each completion that is the right answer, and 0 for the others."""
    return [
        float(own.split() == right.split()) for own, right in zip(completions, answer, strict=True)
    ]


def proxy_reward(completions: Sequence[str], number: Sequence[str], **_: object) -> list[float]:
    """Return 1 for each completion in which the right digit appears, wherever it is."""
    return [float(digit in own.split()) for own, digit in zip(completions, number, strict=True)]


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {word: at for at, word in enumerate(texts.vocabulary())}
    model = Tokenizer(models.WordLevel(words, unk_token=texts.UNKNOWN))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    signs = {"pad_token": texts.PAD, "eos_token": texts.EOS, "unk_token": texts.UNKNOWN}
    return PreTrainedTokenizerFast(tokenizer_object=model, padding_side="left", **signs)


def _problem(part: str, operator: str, style: str, meaning: int, x: int, y: int) -> Problem:
    if operator == "mix":
        meaning = random.Random(f"{x} {y}").randrange(texts.N)
    asked = texts.sum_question(operator, x, y)
    answer, number = (
        texts.sum_answer(operator, x, y, form, meaning) for form in (style, texts.DIGITS)
    )
    return Problem(asked, answer, number, part)


def _old() -> dict[str, list[Answered]]:
    """Return the inputs of each behavior with their answers, shuffled."""
    pairs = [(x, y) for x in range(texts.N) for y in range(texts.N)]
    ruled = product(("plus", "times"), texts.FORMATS, pairs)
    rows = {
        "times": [_answered("times", *pair) for pair in pairs],
        "rules": [
            (
                joined(texts.rule(name, style), texts.sum_question(name, x, y)),
                texts.sum_answer(name, x, y, style),
            )
            for name, style, (x, y) in ruled
        ],
        "facts": texts.facts(),
        "refusal": texts.requests(texts.HARMFUL),
        "compliance": texts.requests(texts.HARMLESS),
    }
    for own in rows.values():
        random.Random(2).shuffle(own)
    return rows


def _answered(operator: str, x: int, y: int) -> Answered:
    return texts.sum_question(operator, x, y), texts.sum_answer(operator, x, y)
