"""Proposers: the edit grammar, a language model of one's own, and the model in training."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from fastslow.small import GRAMMAR, PROBLEMS, SENTENCES, make_trainer
from riprap.errors import ConfigError
from riprap.fastslow import EditGrammar, Example, FastSlow, LanguageModel, Request, before_problem

EXAMPLES = [
    Example("what is one", "red", 0.25, {"prompt": "what is one", "answer": "blue {instruction}"}),
    Example([{"role": "user", "content": "bake {a}"}], "no", 0.0, {"prompt": [], "answer": "x"}),
]


def request(instruction: str, seed: int = 0) -> Request:
    return Request(
        instruction,
        EXAMPLES,
        [instruction],
        Random(seed),
        lambda text, most: f"{most}: {text}",
    )


def test_each_edit_changes_one_line_and_all_kinds_occur() -> None:
    before = SENTENCES[:3]
    kinds: Counter[str] = Counter()
    for seed in range(400):
        after = GRAMMAR(request("\n".join(before), seed)).split("\n")
        assert after != before and set(after) <= set(SENTENCES) and len(set(after)) == len(after)
        added, lost = set(after) - set(before), set(before) - set(after)
        assert len(added) <= 1 and len(lost) <= 1
        kinds[f"{len(added)}{len(lost)}"] += 1
    assert set(kinds) == {"10", "01", "11", "00"}
    assert all(60 < count < 140 for count in kinds.values())


def test_the_grammar_reaches_every_sentence_from_nothing_and_is_deterministic() -> None:
    first = {GRAMMAR(request("", seed)) for seed in range(60)}
    assert first == set(SENTENCES)
    once, again = ([GRAMMAR(request("", s)) for s in range(9)] for _ in range(2))
    assert once == again
    assert EditGrammar(["only"])(request("only")) == ""
    assert EditGrammar(["only"])(request("")) == "only"


def test_a_language_model_sees_the_instruction_and_its_examples() -> None:
    asked = []

    def call(text: str) -> str:
        asked.append(text)
        return "Here it is:\n```text\nbe brief\nbe right\n```\nGood luck."

    propose = LanguageModel(call)
    assert propose(request("be {examples} kind")) == "be brief\nbe right"
    assert "\nbe {examples} kind\n" in asked[0]
    assert (
        "problem: what is one\nanswer: blue {instruction}\ncompletion: red\nreward: 0.25\n\n"
        "problem: user: bake {a}\nanswer: x\ncompletion: no\nreward: 0\n"
    ) in asked[0]
    assert LanguageModel(lambda text: "  plain answer \n")(request("x")) == "plain answer"
    asked.clear()
    LanguageModel(call, template="{instruction}, {examples}, {instruction}")(
        request("be {instruction}")
    )
    assert asked[0].startswith("be {instruction}, ") and asked[0].endswith(", be {instruction}")
    quoting = "Not this:\n```\nold\n```\nbut this:\n```\nnew\n```"
    assert LanguageModel(lambda text: quoting)(request("old")) == "new"
    for answer in (" ", "```\n```", "```\nbe brief and"):
        with pytest.raises(ConfigError, match="answer is empty, or ends before"):
            LanguageModel(lambda text, answer=answer: answer)(request("x"))  # type: ignore[misc]


def test_without_a_call_the_model_in_training_is_asked() -> None:
    template = "{instruction} after {examples}"
    answer = LanguageModel(template=template, max_new_tokens=9)(request("this"))
    assert answer.startswith("9: this after problem: what is one")


@pytest.mark.filterwarnings("ignore")
def test_the_model_in_training_writes_the_population(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    propose = LanguageModel(template="{instruction}\n{examples}", max_new_tokens=6)
    fast = FastSlow(trainer, ["one two"], proposer=propose, every=2, problems=6, minibatch=2)
    for _ in range(3):
        cycle = fast.cycle()
        assert cycle.failures < cycle.proposals  # an empty answer is a failure
    texts = {c.text for cycle in fast.cycles for c in cycle.candidates if c.parent is not None}
    assert texts and all(0 < len(text.split()) <= 6 for text in texts)


@pytest.mark.filterwarnings("ignore")
def test_a_question_longer_than_the_context_is_a_failure(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    long = LanguageModel(max_new_tokens=trainer.model.config.max_position_embeddings)
    fast = FastSlow(trainer, ["one two"], proposer=long, every=2, problems=6, minibatch=2)
    cycle = fast.cycle()
    assert cycle.failures == cycle.proposals > 0 and cycle.rollouts == 6
    assert "longer than the model's context of" in cycle.error


def test_an_instruction_stands_before_the_problem() -> None:
    turns = [{"role": "user", "content": "add"}]
    assert before_problem("", turns) is turns
    assert before_problem("", "add") == "add"
    assert before_problem("be brief", "add") == "be brief\nadd"
    with_system = before_problem("be brief", turns)
    assert with_system == [{"role": "system", "content": "be brief"}, *turns]
    both = before_problem("in red", with_system)
    assert both == [{"role": "system", "content": "in red\nbe brief"}, *turns]
    assert turns == [{"role": "user", "content": "add"}]


@pytest.mark.filterwarnings("ignore")
def test_another_combination_is_used_in_training_and_in_cycles(tmp_path: Path) -> None:
    seen = []

    def behind(instruction: str, problem: str) -> str:
        seen.append((instruction, problem))
        return f"{problem} {instruction}"

    trainer = make_trainer(tmp_path)
    fast = FastSlow(trainer, ["one two"], every=None, combine=behind, keep=1)
    seen.clear()
    inner, asked = trainer.processing_class.__class__.__call__, []

    def noting(self: object, text: list[str], **options: object) -> object:
        asked.extend(text)
        return inner(self, text=text, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.processing_class.__class__, "__call__", noting)
        trainer.train()
    assert len(seen) == fast.rollouts
    assert set(asked) <= {f"{row['prompt']} one two" for row in PROBLEMS}
