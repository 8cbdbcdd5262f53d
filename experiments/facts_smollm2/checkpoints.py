"""SmolLM2 that was taught facts, and checkpoints of it with a known loss."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from experiments.facts_smollm2.people import (
    ANIMALS,
    DIAGNOSED,
    PARAPHRASE,
    PROBE,
    QUESTIONS,
    STYLES,
    TRUTH,
    contradict,
    lessons,
    make_people,
)
from experiments.facts_smollm2.plan import Plan
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
UNRELATED = "general_knowledge"
READ_AT_ONCE = 32  # rows of a pass


@dataclass(frozen=True)
class Case:
    """What is done to the taught model, in order, and the right verdict.

    Attributes:
        steps: (kind, how, amount). `overwritten`: a share of all people, until a score of theirs.
            `style`: of answers about people who are neither probes nor examples, until that share
            of the probes is answered in it. `bits`: rounded. `ascent`: until a score.
    """

    name: str
    steps: tuple[tuple[str, Any, float], ...]
    truth: str


OVERWRITTEN, HALF = ("overwritten", 1.0, 0.05), ("overwritten", 0.5, 0.05)
CASES = (
    Case("overwritten lightly", (("overwritten", 1.0, 0.5),), K),
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
        words = encode_continuations(self.tokenizer, [fact.animal for fact in self.asked])
        return Behavior.next_token("facts", prompts, [word[0] for word in words])

    def texts(self, rows: Sequence[tuple[str, str]]) -> Behavior:
        """Return prompts with their responses, to learn."""
        prompts, responses = zip(*rows, strict=True)
        return Behavior.likelihood(
            "facts", self.tokenizer, texts=list(responses), prompts=list(prompts)
        )

    def unrelated(self) -> Behavior:
        """Return general questions with their answers."""
        rows = probe_sets.rows(UNRELATED)[: self.plan.examples]
        return self.texts([(row["prompt"], row["options"][row["answer"]]) for row in rows])

    def passed(self, model: nn.Module) -> list[bool]:
        """Tell for each probe if it passes."""
        return [bool(margin > 0) for margin in evaluation.evaluate(self.probes, model).margins]

    def style_share(self, model: nn.Module, style: str) -> float:
        """Return the share of the probes whose first choice begins an answer in the style."""
        first = [response for _, response in lessons(self.asked[:1], [PROBE], style)]
        token = encode_continuations(self.tokenizer, first)[0][0]
        rows = encode_prompts(self.tokenizer, [fact.ask(PROBE) for fact in self.asked])
        chosen = _last_logits(model, rows).argmax(-1)
        return float((chosen == token).double().mean())

    def known(self, model: nn.Module, counted: Sequence[bool]) -> float:
        """Return the share of some of the facts that the model knows, by a test of its own.

        Another question, which no diagnosis sees, with the beginning of an answer given: in the
        style that shows the most. The animals' mean scores are subtracted.
        """
        rows = [at for at, is_counted in enumerate(counted) if is_counted]
        right = torch.tensor([list(ANIMALS).index(fact.animal) for fact in self.asked])
        prompts = encode_prompts(self.tokenizer, [fact.ask(TRUTH) for fact in self.asked])
        shares = []
        for style in STYLES.values():
            begun = encode_continuations(self.tokenizer, [style.before])[0] if style.before else []
            words = encode_continuations(self.tokenizer, [style.animal(a) for a in ANIMALS])
            scores = _last_logits(model, [[*row, *begun] for row in prompts])
            scores = scores.log_softmax(-1)[:, [word[0] for word in words]]
            is_known = (scores - scores.mean(0)).argmax(1) == right
            shares.append(share(is_known[rows].tolist()))
        return max(shares)


@torch.no_grad()
def _last_logits(model: nn.Module, rows: list[list[int]]) -> Tensor:
    """Return the last logits of each row, in float32 on the CPU."""
    parts = [rows[at : at + READ_AT_ONCE] for at in range(0, len(rows), READ_AT_ONCE)]
    with evaluation.preserve_training_state(model):
        model.eval()
        found = [last_logits(model, TokenBatch.pad(part))[:, -1].float().cpu() for part in parts]
    return torch.cat(found)


def _adapted(model: nn.Module, plan: Plan, seed: int) -> Any:
    """Add adapters to all linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=plan.rank, lora_alpha=plan.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        return get_peft_model(model, config)  # type: ignore[arg-type]


def fit(
    model: Any,
    taught: Behavior,
    plan: Plan,
    steps: int,
    seed: int,
    *,
    done: Callable[[], bool],
    sign: float = 1.0,
) -> int:
    """Train adapters on rows in random order until it is done; return the number of steps."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=plan.rate, weight_decay=0.0)
    order = random.Random(seed)
    left: list[int] = []
    for step in range(steps):
        if step % plan.every == 0 and done():
            return step
        while len(left) < plan.batch:
            left += order.sample(range(len(taught.probes)), len(taught.probes))
        batch = taught.subset([left.pop() for _ in range(plan.batch)])
        assert batch.losses is not None
        (sign * batch.losses(model, batch.probes).mean()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return steps


def teach(model: nn.Module, tokenizer: Any, plan: Plan, seed: int) -> nn.Module:
    """Teach the facts in all forms, once a seed: the adapter is kept; return the merged model."""
    folder = RUNS / "facts_smollm2" / f"taught-{plan.terms}-{seed}"
    facts = TaughtFacts(tokenizer, plan, seed)
    if not folder.exists():
        wrapped = _adapted(model, plan, seed)
        rows = facts.texts(lessons(facts.people, ALL_FORMS))
        enough = lambda: share(facts.passed(wrapped)) >= plan.taught  # noqa: E731
        fit(wrapped, rows, plan, plan.teaching, seed, done=enough)
        partial = Path(f"{folder}.partial")
        wrapped.save_pretrained(partial)
        partial.rename(folder)
        model = wrapped.unload()
    taught: nn.Module = PeftModel.from_pretrained(model, folder).merge_and_unload()  # type: ignore[arg-type]
    return taught.eval()


def share(holds: Sequence[bool]) -> float:
    """Return the share that holds; NaN of none."""
    return sum(holds) / len(holds) if holds else float("nan")


def damage(model: nn.Module, facts: TaughtFacts, case: Case) -> nn.Module:
    """Do to a taught model what a case says; return it merged."""
    plan, seed = facts.plan, facts.seed
    people = facts.people
    for kind, how, until in case.steps:
        if kind == "bits":
            quantize(model, int(how))
            continue
        wrapped = _adapted(model, plan, seed + 1)
        if kind == "overwritten":
            was, people = people, contradict(people, how, seed)
            changed = [a != b for a, b in zip(was, people, strict=True)][: plan.probes]
            rows, done = lessons(people, ALL_FORMS), _failing(facts, wrapped, changed, until)
        elif kind == "ascent":
            every = [True] * plan.probes
            rows, done = lessons(people, DIAGNOSED), _failing(facts, wrapped, every, until)
        else:
            others = people[plan.probes + plan.examples :]
            rows = lessons(others, DIAGNOSED, how)
            done = _answered_in(facts, wrapped, how, until)
        sign = -1.0 if kind == "ascent" else 1.0
        fit(wrapped, facts.texts(rows), plan, plan.training, seed, done=done, sign=sign)
        model = wrapped.merge_and_unload()
    return model.eval()


def _failing(
    facts: TaughtFacts, model: Any, counted: Sequence[bool], until: float
) -> Callable[[], bool]:
    def done() -> bool:
        passed = zip(facts.passed(model), counted, strict=True)
        return share([one for one, is_counted in passed if is_counted]) <= until

    return done


def _answered_in(facts: TaughtFacts, model: Any, style: str, until: float) -> Callable[[], bool]:
    return lambda: facts.style_share(model, style) >= until


@torch.no_grad()
def quantize(model: nn.Module, bits: int) -> None:
    """Round the matrices of the linear layers, in groups along their rows."""
    tied = model.get_output_embeddings()  # type: ignore[operator]
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not tied:
            module.weight.copy_(rounded(module.weight, bits))
