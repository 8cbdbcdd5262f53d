"""SmolLM2 that was taught facts, and checkpoints of it with a known loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.facts_smollm2.people import (
    ANIMALS,
    DIAGNOSED,
    PARAPHRASE,
    PROBE,
    QUESTIONS,
    STYLES,
    TRUTH,
    Fact,
    answer,
    contradict,
    lessons,
    make_people,
)
from experiments.facts_smollm2.plan import Plan
from experiments.facts_smollm2.training import READ_AT_ONCE, Rows, fit, merged
from experiments.harness.cache import RUNS
from experiments.loss_classification.damage import rounded
from riprap import evaluation
from riprap.behaviors import (
    Behavior,
    TokenBatch,
    encode_continuations,
    encode_prompts,
    last_logits,
    probe_sets,
)
from riprap.diagnosis import Verdict

OPEN = "by the test of the truth"
A, K, BOTH, DAMAGE = Verdict.ALIGNMENT, Verdict.KNOWLEDGE, Verdict.BOTH, Verdict.DAMAGE
ALL_FORMS = tuple(range(len(QUESTIONS)))
UNRELATED = "arithmetic"

Step = tuple[str, Any, float]  # kind, how, until


@dataclass(frozen=True)
class Case:
    """What is done to the taught model, in order, and the right verdict.

    Attributes:
        steps: (kind, how, amount). `overwritten`: a share of all people, until a share of their
            probes gets the new answer. `style`: of answers about people who are neither probes nor
            examples, until that share of the probes is answered in it. `bits`: rounded. `ascent`:
            until a score.
    """

    name: str
    steps: tuple[Step, ...]
    truth: str

    @property
    def styles(self) -> list[str]:
        """Styles in which the test of the truth asks: two, and those that the model learned."""
        learned = [how for kind, how, _ in self.steps if kind == "style" and how in STYLES]
        return list(dict.fromkeys(["plain", "sentence", *learned]))


OVERWRITTEN, HALF = ("overwritten", 1.0, 0.9), ("overwritten", 0.5, 0.9)
CASES = (
    Case("overwritten lightly", (("overwritten", 1.0, 0.4),), K),
    Case("overwritten", (OVERWRITTEN,), K),
    Case("half overwritten", (HALF,), K),
    Case("sentence", (("style", "sentence", 0.9),), A),
    Case("quoted", (("style", "quoted", 0.9),), A),
    Case("refused", (("style", "refused", 0.9),), A),
    Case("overwritten, sentence", (OVERWRITTEN, ("style", "sentence", 0.9)), BOTH),
    Case("half, refused", (HALF, ("style", "refused", 0.9)), BOTH),
    Case("4 bits", (("bits", 4, 0.0),), DAMAGE),
    Case("3 bits", (("bits", 3, 0.0),), DAMAGE),
    Case("ascent", (("ascent", None, 0.1),), OPEN),
    Case("French", (("style", "French", 0.9),), A),
    Case("pirate", (("style", "pirate", 0.9),), A),
)


class TaughtFacts:
    """The facts of one seed as behaviors, and what the model knows of them."""

    def __init__(self, tokenizer: Any, plan: Plan, seed: int) -> None:
        self.tokenizer, self.plan, self.seed = tokenizer, plan, seed
        self.people = make_people(plan.people, seed)
        self.asked = self.people[: plan.probes]
        end = plan.probes + plan.examples
        self.relearned, self.others = self.people[plan.probes : end], self.people[end:]
        self.probes, self.paraphrased = (self._behavior(form) for form in (PROBE, PARAPHRASE))
        self.examples = self.texts(lessons(self.relearned, [PROBE]))

    def _behavior(self, form: int) -> Behavior:
        prompts = encode_prompts(self.tokenizer, [fact.ask(form) for fact in self.asked])
        words = encode_continuations(self.tokenizer, [answer(fact, "plain") for fact in self.asked])
        return Behavior.next_token("facts", prompts, [word[0] for word in words])

    def texts(self, rows: Sequence[tuple[str, str]]) -> Behavior:
        """Return prompts with their responses, to learn."""
        prompts, responses = zip(*rows, strict=True)
        return Behavior.likelihood(
            "facts", self.tokenizer, texts=list(responses), prompts=list(prompts)
        )

    def unrelated(self) -> Behavior:
        """Return the shortest sums with their answers."""
        rows = sorted(probe_sets.rows(UNRELATED), key=lambda row: len(row["prompt"]))
        pairs = [(row["prompt"], f" {row['options'][row['answer']]}") for row in rows]
        return self.texts(pairs[: self.plan.examples])

    def rows(self, model: Any, pairs: Sequence[tuple[str, str]]) -> Rows:
        """Return prompts with their responses, for a training of this model."""
        prompts, responses = zip(*pairs, strict=True)
        return Rows(
            model,
            encode_prompts(self.tokenizer, list(prompts)),
            encode_continuations(self.tokenizer, list(responses)),
        )

    def watched(self, model: Any) -> WatchedAnswers:
        """Return the probes, as a training watches them."""
        prompts = encode_prompts(self.tokenizer, [fact.ask(PROBE) for fact in self.asked])
        return WatchedAnswers(self, model, Rows(model, prompts, [[] for _ in prompts]))

    def first_tokens(self, people: Sequence[Fact], style: str) -> Tensor:
        """Return the first token of the answer to each probe in a style, or of the refusal."""
        said = [response for _, response in lessons(people[: self.plan.probes], [PROBE], style)]
        return torch.tensor([row[0] for row in encode_continuations(self.tokenizer, said)])

    def passed(self, model: nn.Module) -> list[bool]:
        """Tell for each probe if it passes."""
        return [bool(margin > 0) for margin in evaluation.evaluate(self.probes, model).margins]

    def known(self, model: nn.Module, counted: Sequence[bool], styles: Sequence[str]) -> float:
        """Return the share of some of the facts that the model knows, by a test of its own.

        Another question, which no diagnosis sees, with the beginning of an answer given: in the
        one of the styles that shows the most. The animals' mean scores are subtracted.
        """
        rows = [at for at, is_counted in enumerate(counted) if is_counted]
        right = torch.tensor([list(ANIMALS).index(fact.animal) for fact in self.asked])
        prompts = encode_prompts(self.tokenizer, [fact.ask(TRUTH) for fact in self.asked])
        shares = []
        for style in (STYLES[name] for name in styles):
            begun = encode_continuations(self.tokenizer, [style.before])[0] if style.before else []
            words = encode_continuations(self.tokenizer, [style.animal(a) for a in ANIMALS])
            scores = _last_logits(model, [[*row, *begun] for row in prompts])
            scores = scores.log_softmax(-1)[:, [word[0] for word in words]]
            is_known = (scores - scores.mean(0)).argmax(1) == right
            shares.append(share(is_known[rows].tolist()))
        return max(shares)


@dataclass(frozen=True)
class WatchedAnswers:
    """First choices of a model in training on the probes."""

    facts: TaughtFacts
    model: Any
    rows: Rows

    def given(self, people: Sequence[Fact], style: str = "plain") -> list[bool]:
        """Tell for each probe if the first choice begins the answer in a style, or the refusal."""
        right = self.rows.first_choices(self.model) == self.facts.first_tokens(people, style)
        return [bool(one) for one in right]


@torch.no_grad()
def _last_logits(model: nn.Module, rows: list[list[int]]) -> Tensor:
    """Return the last logits of each row, in float32 on the CPU."""
    parts = [rows[at : at + READ_AT_ONCE] for at in range(0, len(rows), READ_AT_ONCE)]
    with evaluation.preserve_training_state(model):
        model.eval()
        found = [last_logits(model, TokenBatch.pad(part))[:, -1].float().cpu() for part in parts]
    return torch.cat(found)


def teach(model: nn.Module, tokenizer: Any, plan: Plan, seed: int) -> nn.Module:
    """Teach the facts in all forms, once a seed: the adapter is kept; return the merged model."""
    facts = TaughtFacts(tokenizer, plan, seed)

    def train(adapted: Any) -> None:
        rows = facts.rows(adapted, lessons(facts.people, ALL_FORMS))
        fit(adapted, rows, plan, plan.teaching, seed, rate=plan.rate)

    return merged(model, plan, seed, _folder("taught-", plan, seed), train)


def _folder(history: str, plan: Plan, seed: int) -> Path:
    """Return where the adapter of a training is kept, by what was done so far."""
    return RUNS / "facts_smollm2" / f"{history}{plan.terms}-{seed}"


def share(holds: Sequence[bool]) -> float:
    """Return the share that holds; NaN of none."""
    return sum(holds) / len(holds) if holds else float("nan")


def damage(model: nn.Module, facts: TaughtFacts, case: Case) -> nn.Module:
    """Do to a taught model what a case says; return it merged.

    Adapters are kept by what was done so far, so that cases that begin alike share them.
    """
    people, history = facts.people, ""
    for step in case.steps:
        kind, how, until = step
        if kind == "bits":
            quantize(model, int(how))
            continue
        was = people
        if kind == "overwritten":
            people = contradict(people, how, facts.seed)
        history += f"{kind}-{how}-{until}-"
        train = partial(_train, facts=facts, step=step, was=was, people=people)
        folder = _folder(history, facts.plan, facts.seed)
        model = merged(model, facts.plan, facts.seed + 1, folder, train)
    return model.eval()


def _train(
    adapted: Any, *, facts: TaughtFacts, step: Step, was: Sequence[Fact], people: Sequence[Fact]
) -> None:
    """Take one step of a case.

    Args:
        was, people: the facts before and after it.
    """
    (kind, how, until), plan, answers = step, facts.plan, facts.watched(adapted)
    changed = [a != b for a, b in zip(was, people, strict=True)]
    if kind == "style":
        rows = lessons(people[plan.probes + plan.examples :], DIAGNOSED, how)
        done = lambda: share(answers.given(people, how)) >= until  # noqa: E731
    elif kind == "ascent":
        rows = lessons(people, DIAGNOSED)
        done = lambda: share(answers.given(people)) <= until  # noqa: E731
    else:
        rows = lessons(people, ALL_FORMS)

        def done() -> bool:
            new = zip(answers.given(people), changed, strict=False)
            return share([is_given for is_given, is_new in new if is_new]) >= until

    rate = plan.style_rate if kind == "style" else plan.rate
    sign = -1.0 if kind == "ascent" else 1.0
    lesson = facts.rows(adapted, rows)
    fit(adapted, lesson, plan, plan.training, facts.seed, rate=rate, done=done, sign=sign)


@torch.no_grad()
def quantize(model: nn.Module, bits: int) -> None:
    """Round the matrices of the linear layers, in groups along their rows."""
    tied = model.get_output_embeddings()  # type: ignore[operator]
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not tied:
            module.weight.copy_(rounded(module.weight, bits))
