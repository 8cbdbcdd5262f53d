"""Self-generated examples: which answers are used, and what is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from guards.cases import monitor_of
from riprap import Behavior, guards
from riprap.behaviors._model_io import TokenBatch
from riprap.behaviors._response_prefixes import greedy_decode
from riprap.behaviors._tokenization import encode_prompts
from riprap.errors import ConfigError
from riprap.evaluation import generate
from riprap.guards import self_generated_examples
from tiny import PROMPTS, PlainLM, make_llama

NO_END = {"eos_token_id": None}


def accept(prompt: object, answer: str) -> bool:
    return True


def test_generation_is_greedy_and_leaves_no_trace(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    llama.generation_config.update(**NO_END)
    llama.train()
    asked = encode_prompts(tokenizer, PROMPTS)
    random = torch.get_rng_state()
    found = generate(llama, tokenizer, asked, 5)
    assert llama.training and torch.equal(random, torch.get_rng_state())
    assert found == greedy_decode(llama.eval(), TokenBatch.pad(asked), 5)


@pytest.mark.parametrize("settings", [{"num_beams": 4}, {"repetition_penalty": 2.0}])
def test_the_models_own_settings_do_not_change_what_is_greedy(
    settings: dict[str, float], llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    llama.generation_config.update(**NO_END, **settings)
    asked = encode_prompts(tokenizer, PROMPTS)
    assert generate(llama, tokenizer, asked, 5) == greedy_decode(llama, TokenBatch.pad(asked), 5)


def test_an_answer_stops_at_its_end(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = encode_prompts(tokenizer, PROMPTS)
    llama.generation_config.update(**NO_END)
    whole = generate(llama, tokenizer, asked, 6)
    llama.generation_config.eos_token_id = whole[0][2]
    found = generate(llama, tokenizer, asked, 6)
    assert found[0] == whole[0][: whole[0].index(whole[0][2]) + 1]
    assert len(found[0]) < 6  # padding is no part of it


def test_labels_are_the_models_own_answers_and_nothing_else(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    llama.generation_config.update(**NO_END)
    asked = encode_prompts(tokenizer, PROMPTS)
    expected = generate(llama, tokenizer, asked, 4)
    batches = self_generated_examples(
        llama, tokenizer, PROMPTS, accept, monitored=[], max_new_tokens=4, batch_size=3
    )
    assert [len(batch["input_ids"]) for batch in batches] == [3, 1]
    rows = [row for batch in batches for row in zip(*batch.values(), strict=True)]
    for (ids, mask, labels), question, answer in zip(rows, asked, expected, strict=True):
        assert ids[mask.bool()].tolist() == question + answer
        assert labels[labels != -100].tolist() == answer
        assert ids[labels != -100].tolist() == answer  # at their own positions


def test_the_answers_are_the_likeliest_there_are(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Another model's answers cost this one more nats: it is its own that it holds on to."""
    other = make_llama(seed=5).eval()
    for model in (llama, other):
        model.generation_config.update(**NO_END)
    own, foreign = (
        self_generated_examples(m, tokenizer, PROMPTS, accept, monitored=[], max_new_tokens=4)[0]
        for m in (llama, other)
    )
    assert llama(**own).loss < llama(**foreign).loss - 1.0


def test_answers_that_are_not_accepted_are_dropped_and_said(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:

    def of_bombs_and_cakes(prompt: object, _answer: str) -> bool:
        return "bomb" in str(prompt) or "cake" in str(prompt)

    with pytest.warns(UserWarning, match="2 of the model's 4 answers"):
        batches = self_generated_examples(
            llama, tokenizer, PROMPTS, of_bombs_and_cakes, monitored=[], max_new_tokens=3
        )
    kept = [PROMPTS[0], PROMPTS[3]]
    for row, prompt in zip(batches[0]["input_ids"], encode_prompts(tokenizer, kept), strict=True):
        assert row[: len(prompt)].tolist() == prompt
    with pytest.raises(ConfigError, match="none of the model's 4 answers"):
        self_generated_examples(llama, tokenizer, PROMPTS, lambda *_: False, monitored=[])


def test_a_probe_that_measures_is_refused(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    for refusal in (
        Behavior.response_prefix("refusal", tokenizer, prompts=PROMPTS[:2], prefixes=["sorry"]),
        Behavior.preference("refusal", tokenizer, PROMPTS[:2], ["sorry no"], ["sure here is"]),
        Behavior.multiple_choice(
            "refusal", tokenizer, PROMPTS[:2], [["sorry", "yes i can"]] * 2, [0, 0]
        ),
    ):
        with pytest.raises(ConfigError, match="1 evaluation probes of 'refusal'"):
            self_generated_examples(llama, tokenizer, PROMPTS[1:], accept, monitored=[refusal])


@pytest.mark.parametrize("odd", [{"max_new_tokens": 0}, {"batch_size": 0}])
def test_sizes_below_one_are_refused(
    odd: dict[str, int], llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ConfigError, match="both must be 1 or more"):
        self_generated_examples(llama, tokenizer, PROMPTS, accept, monitored=[], **odd)


def test_a_model_that_cannot_generate_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match=r"PlainLM has no generate\(\)"):
        self_generated_examples(PlainLM(), tokenizer, PROMPTS, accept, monitored=[])


def test_replaying_them_keeps_what_is_answered(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Trained on the opposite of its own answers, a model with replay goes on giving its own."""
    start = {name: part.clone() for name, part in llama.state_dict().items()}
    llama.generation_config.update(**NO_END)
    batches = self_generated_examples(
        llama, tokenizer, PROMPTS, accept, monitored=[], max_new_tokens=3
    )
    lesson = torch.randint(3, 40, (8, 9), generator=torch.Generator().manual_seed(1))
    refusal = Behavior.response_prefix(
        "refusal", tokenizer, prompts=["how do i paint a cake"], prefixes=["sorry"]
    )

    def loss_after(guard: guards.Guard | None) -> float:
        llama.load_state_dict(start)
        optimizer = torch.optim.Adam(llama.parameters(), lr=3e-3)
        with monitor_of([refusal]).watch(llama, optimizer, guard=guard):
            for _ in range(30):
                optimizer.zero_grad()
                llama(input_ids=lesson, labels=lesson).loss.backward()
                optimizer.step()
        with torch.no_grad():
            return float(llama(**batches[0]).loss)

    assert loss_after(guards.Replay(batches, fraction=0.5)) < 0.5 * loss_after(None)
