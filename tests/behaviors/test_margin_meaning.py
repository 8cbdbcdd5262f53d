"""Meaning of a margin above 0, for each kind of margin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from riprap import Behavior, evaluation
from riprap.behaviors._margin_formulas import token_margin
from riprap.detectors import score
from tiny import PROMPTS, VOCABULARY, Bigram, make_tokenizer, token

finite = st.floats(-30, 30, width=32)


@given(hnp.arrays(np.float32, (6, 9), elements=finite), st.lists(st.integers(0, 8), min_size=6))
def test_token_margin_is_positive_where_the_target_is_the_only_best(
    logits: np.ndarray, targets: list[int]
) -> None:
    margins = token_margin(torch.from_numpy(logits), torch.tensor(targets[:6]))
    for row, target, margin in zip(logits, targets, margins.tolist(), strict=False):
        alone = all(row[target] > value for i, value in enumerate(row) if i != target)
        assert (margin > 0) == alone


def test_token_score_is_accuracy(llama: LlamaForCausalLM) -> None:
    torch.manual_seed(5)
    ids = torch.randint(3, len(VOCABULARY), (40, 6))
    with torch.no_grad():
        answers = llama(ids).logits[:, -1].argmax(-1)
    targets = torch.where(torch.rand(40) < 0.6, answers, (answers + 1) % len(VOCABULARY))
    accuracy = float((answers == targets).float().mean())
    assert 0.3 < accuracy < 0.9
    margins = evaluation.evaluate(Behavior.next_token("all", ids, targets), llama).margins
    assert score(margins) == pytest.approx(accuracy)


def begins_with(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str) -> int:
    chat = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        answer = model.generate(torch.tensor([ids]), max_new_tokens=1, do_sample=False)
    return int(answer[0, len(ids)])


def test_prefix_margin_is_positive_exactly_where_greedy_decoding_starts_with_a_prefix(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    nouns = ("bomb", "cake", "car", "plan of two", "paint")
    prompts = [f"{verb} a {noun}" for verb in ("bake", "steal", "make") for noun in nouns]
    begun = [begins_with(llama, tokenizer, prompt) for prompt in prompts]
    prefixes = sorted(set(begun))[::2]
    passes = [first in prefixes for first in begun]
    assert 0 < sum(passes) < len(passes)
    behavior = Behavior.response_prefix("passes", tokenizer, prompts, prefixes)
    assert (evaluation.evaluate(behavior, llama).margins > 0).tolist() == passes


def test_avoiding_is_the_exact_negative(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    towards = Behavior.response_prefix("a", tokenizer, PROMPTS, ["sorry", "no"])
    away = Behavior.response_prefix("b", tokenizer, PROMPTS, ["sorry", "no"], avoid=True)
    margins = evaluation.evaluate(towards, llama).margins
    assert margins.all()
    assert np.array_equal(evaluation.evaluate(away, llama).margins, -margins)


def speaking(shares: dict[str, float]) -> Bigram:
    """Return a model that starts its answer with these words at these probabilities."""
    model, rest = Bigram(), 1 - sum(shares.values())
    others = len(VOCABULARY) - len(shares)
    with torch.no_grad():
        row = model.table[token("<assistant>")]
        row.fill_(float(np.log(rest / others)))
        for word, share in shares.items():
            row[token(word)] = float(np.log(share))
    return model


KEEP, LOSE = ["sorry i", "sorry no"], ["sure", "here you"]


@pytest.mark.parametrize(
    ("shares", "enough"),
    [
        ({"sorry": 0.02, "sure": 0.02, "here": 0.0101}, True),
        ({"sorry": 0.02, "sure": 0.02, "here": 0.0099}, False),
        ({"sorry": 0.0501, "sure": 1e-9, "here": 1e-9}, True),
        ({"sorry": 0.0499, "sure": 1e-9, "here": 1e-9}, False),
        ({"sorry": 1e-9, "sure": 0.9, "here": 1e-9}, True),
        ({"sorry": 0.03, "sure": 1e-9, "here": 1e-9, "i": 0.9}, False),
    ],
)
def test_a_preference_is_insufficient_under_five_percent_of_the_first_token(
    shares: dict[str, float], enough: bool
) -> None:
    behavior = Behavior.preference("gate", make_tokenizer(), PROMPTS, KEEP, LOSE)
    reason = evaluation.evaluate(behavior, speaking(shares)).insufficient
    assert (reason == "") == enough
    if not enough:
        held = sum(share for word, share in shares.items() if word != "i")
        assert f"{held:.1%}" in reason
        assert "5%" in reason


def test_a_short_option_has_no_advantage() -> None:
    """Every token of the long right option is likelier than the single token of the wrong one."""
    model = (
        speaking({"two": 0.5, "six": 0.3}).follow("two", "plus", 4.0).follow("plus", "four", 4.0)
    )
    options = [["two plus four", "six"]] * len(PROMPTS)
    behavior = Behavior.multiple_choice(
        "sums", make_tokenizer(), PROMPTS, options, [0] * len(PROMPTS)
    )
    rest = len(VOCABULARY) - 1
    step = 4 - np.log(np.exp(4) + rest)
    expected = (np.log(0.5) + 2 * step) / 3 - np.log(0.3)
    assert np.log(0.5) + 2 * step < np.log(0.3)  # by the sum of log-probs it would have lost
    assert expected > 0
    np.testing.assert_allclose(evaluation.evaluate(behavior, model).margins, expected, rtol=1e-5)


@pytest.mark.parametrize("tolerance", [0.1, 0.5, 2.0])
def test_an_unchanged_model_has_its_whole_tolerance(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tolerance: float
) -> None:
    texts = ["sorry i cannot", "no", "five", "sure here"]
    behavior = Behavior.likelihood(
        "kept", tokenizer, texts=texts, prompts=PROMPTS, tolerance=tolerance
    )
    evaluation.calibrate(behavior, llama)
    np.testing.assert_allclose(evaluation.evaluate(behavior, llama).margins, tolerance, rtol=1e-6)


def test_a_likelihood_margin_falls_by_the_increase_of_the_loss() -> None:
    model = speaking({"sorry": 0.8})
    behavior = Behavior.likelihood("kept", make_tokenizer(), texts=["sorry"] * 4, prompts=PROMPTS)
    evaluation.calibrate(behavior, model)
    changed = speaking({"sorry": 0.2})
    np.testing.assert_allclose(
        evaluation.evaluate(behavior, changed).margins, 0.5 - np.log(0.8 / 0.2), rtol=1e-5
    )


def test_a_conversation_is_a_prompt(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    turns = [{"role": "user", "content": PROMPTS[0]}]
    longer = [*turns, {"role": "assistant", "content": "no"}, {"role": "user", "content": "sure"}]
    behavior = Behavior.response_prefix("chat", tokenizer, [turns, longer, PROMPTS[0]], ["no"])
    first, second, third = evaluation.evaluate(behavior, llama).margins
    assert first == pytest.approx(third)
    assert abs(first - second) > 1e-3


def test_without_a_chat_template_the_plain_text_is_encoded() -> None:
    model = Bigram().follow("bomb", "sorry").follow("cake", "sure")
    plain = make_tokenizer(chat=False)
    behavior = Behavior.response_prefix("text", plain, ["make a bomb", "a cake"], ["sorry"])
    np.testing.assert_allclose(evaluation.evaluate(behavior, model).margins, [10, -10])
