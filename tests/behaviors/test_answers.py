"""How the model begins to answer, read from the pass that computes the margins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from riprap import Behavior, evaluation
from riprap.behaviors import NextToken, TokenBatch, greedy_decode
from riprap.evaluation import preserve_training_state
from tiny import PROMPTS, VOCABULARY, PlainLM, make_gpt2, make_llama, make_tokenizer

TOKENIZER = make_tokenizer()
MORE = [*PROMPTS, "what is the red cake", "do you help", "paint the car blue with me please"]


def adapted() -> nn.Module:
    model = get_peft_model(make_llama(attention_dropout=0.1), LoraConfig(r=2, lora_dropout=0.2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: make_llama(attention_dropout=0.1),
    "eager": lambda: make_llama(attn_implementation="eager"),
    "gpt2": make_gpt2,
    "peft": adapted,
}


def greedy(model: nn.Module, behavior: Behavior, n: int = 6) -> list[list[int]]:
    """Greedy answers by separate passes, one token each."""
    rows = behavior.token_rows() or []
    with torch.no_grad(), preserve_training_state(model):
        return [greedy_decode(model, TokenBatch.pad([row]), n)[0] for row in rows]


def words(tokens: list[int]) -> str:
    return TOKENIZER.decode(tokens)


def kinds(said: list[list[int]]) -> list[Behavior]:
    """Behaviors whose expected answers are in part those of the model."""
    prefixes = [words(said[0][:3]), words(said[1][:2]), words(said[2][:1]), "sorry sorry"]
    right = [words(answer[:3]) for answer in said]
    wrong = [words([*answer[:2], VOCABULARY["bomb"], *answer[:2]]) for answer in said]
    options = [[one, two] for one, two in zip(wrong, right, strict=True)]
    return [
        Behavior.response_prefix("prefix", TOKENIZER, MORE, prefixes),
        Behavior.response_prefix("avoid", TOKENIZER, MORE, ["sorry"], avoid=True),
        Behavior.preference("preferred", TOKENIZER, MORE, [right[0], "no"], [right[1], "yes"]),
        Behavior.multiple_choice("choice", TOKENIZER, MORE, options, [1] * len(MORE)),
        Behavior.likelihood("text", TOKENIZER, texts=wrong, prompts=MORE),
    ]


@pytest.mark.parametrize("kind", MODELS)
def test_an_answer_is_the_beginning_of_the_greedy_response(kind: str) -> None:
    model = MODELS[kind]().train()
    said = greedy(model, Behavior.response_prefix("any", TOKENIZER, MORE, ["no"]))
    behaviors = kinds(said)
    before = torch.get_rng_state()
    for behavior in behaviors:
        evaluation.calibrate(behavior, model)
        result = evaluation.evaluate(behavior, model, answers=True)
        assert result.answers is not None and not result.answers_error
        for answer, whole in zip(result.answers, said, strict=True):
            assert answer == whole[: len(answer)] and answer
        plain = evaluation.evaluate(behavior, model)
        assert plain.answers is None
        assert torch.equal(torch.tensor(plain.margins), torch.tensor(result.margins))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())


def test_an_answer_goes_as_far_as_an_expected_one_and_a_token_on() -> None:
    model = make_llama()
    said = greedy(model, Behavior.response_prefix("any", TOKENIZER, MORE, ["no"]))
    lengths = {}
    for behavior in kinds(said):
        evaluation.calibrate(behavior, model)
        answers = evaluation.evaluate(behavior, model, answers=True).answers
        lengths[behavior.name] = [len(answer) for answer in answers or []]
    assert lengths["avoid"] == [1] * len(MORE)
    assert lengths["choice"] == [3] * len(MORE)  # the right option, though the wrong one is longer
    assert all(length == 3 for length in lengths["text"])  # two tokens that are right, and one
    alone = Behavior.response_prefix("alone", TOKENIZER, MORE, [words(said[0][:3])])
    answers = evaluation.evaluate(alone, model, answers=True).answers or []
    assert answers[0] == said[0][:3]


def test_behaviors_that_share_passes_and_chunks_keep_their_own_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_llama()
    behaviors = [
        Behavior.response_prefix("one", TOKENIZER, MORE, ["sorry", "no"]),
        Behavior.response_prefix("two", TOKENIZER, MORE[::-1], ["sure"], avoid=True),
        Behavior.next_token("three", [[5, 9, 11], [4, 30]], [7, 8]),
    ]
    assert len(evaluation.group_by_forward_pass(behaviors, model)) == 1
    for tokens in (10_000, 25):
        monkeypatch.setattr("riprap.evaluation._chunks.token_budget", lambda *_, n=tokens: n)
        for parameters in (None, list(model.parameters())):
            together = evaluation.evaluate_batch(behaviors, model, parameters, answers=True)
            for behavior in behaviors:
                answers = together[behavior.name].answers
                assert answers == [own[:1] for own in greedy(model, behavior, 1)]


def test_a_margin_of_ones_own_tells_what_its_parts_tell() -> None:
    model, ids = PlainLM(), torch.randint(6, 40, (5, 4))
    told = NextToken(torch.arange(6, 11))
    once = Behavior("once", TokenBatch(ids), lambda m, p: told(m, p))
    twice = Behavior("twice", TokenBatch(ids), lambda m, p: told(m, p) + told(m, p))
    silent = Behavior("silent", ids, lambda m, p: m(p)[:, -1, 0])
    firsts = model(ids)[:, -1].argmax(-1).tolist()
    answers = [evaluation.evaluate(b, model, answers=True).answers for b in (once, twice, silent)]
    assert answers == [[[token] for token in firsts], None, None]


def test_answers_that_cannot_be_read_cost_no_margin() -> None:
    class Odd(NextToken):
        def answers(self, logits: Tensor) -> Any:
            raise ValueError("no words today")

    model, ids = PlainLM(), torch.randint(6, 40, (3, 4))
    odd = Behavior("odd", TokenBatch(ids), Odd(torch.tensor([6, 7, 8])))
    result = evaluation.evaluate(odd, model, answers=True)
    assert result.answers is None and result.answers_error == "ValueError: no words today"
    assert len(result.margins) == 3
    assert not evaluation.evaluate(odd, model).answers_error
