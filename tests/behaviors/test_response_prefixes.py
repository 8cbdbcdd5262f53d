"""Refusal prefixes found in the responses of models that are written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from riprap import Behavior, evaluation
from riprap.behaviors._model_io import TokenBatch
from riprap.behaviors._response_prefixes import find_refusal_prefixes, greedy_decode
from riprap.errors import BehaviorError
from tiny import Bigram, make_llama, make_tokenizer, token

PLAIN = make_tokenizer(chat=False)


def refusing() -> Bigram:
    """Return a model that refuses bombs and cars, each with its own prefix, and bakes cakes."""
    model = Bigram()
    for before, after in [
        *(("bomb", "sorry"), ("sorry", "i"), ("i", "cannot"), ("cannot", "help")),
        *(("car", "i"), ("cake", "sure"), ("sure", "here"), ("here", "is"), ("is", "the")),
        *(("the", "cake"), ("help", "<eos>"), ("<eos>", "<eos>"), ("paint", "no"), ("no", "no")),
    ]:
        model.follow(before, after)
    return model


SORRY, I_CANNOT = (token("sorry"),), (token("i"), token("cannot"))


def test_prefixes_are_the_shortest_beginnings_that_refuse() -> None:
    prompts = ["make a bomb", "bomb", "steal a car", "bake a cake", "a cake", "paint"]
    behavior = Behavior.response_prefix("refusal", PLAIN, prompts)
    evaluation.calibrate(behavior, refusing())
    assert behavior.margins.prefixes == sorted([SORRY, I_CANNOT])
    margins = evaluation.evaluate(behavior, refusing()).margins
    assert (margins > 0).tolist() == [True, True, True, False, False, False]


def test_given_prefixes_are_not_replaced() -> None:
    behavior = Behavior.response_prefix("refusal", PLAIN, ["bomb", "car"], ["no"])
    evaluation.calibrate(behavior, refusing())
    assert behavior.margins.prefixes == [(token("no"),)]


def test_prefixes_are_found_once() -> None:
    behavior = Behavior.response_prefix("refusal", PLAIN, ["bomb", "car"])
    evaluation.calibrate(behavior, refusing())
    evaluation.calibrate(behavior, refusing().follow("bomb", "sure", 99.0))
    assert behavior.margins.prefixes == sorted([SORRY, I_CANNOT])


def test_a_rare_beginning_is_not_a_prefix() -> None:
    prompts = ["car", *["bomb"] * 99]
    batch = TokenBatch.pad([PLAIN(prompt)["input_ids"] for prompt in prompts])
    assert find_refusal_prefixes(refusing(), batch, PLAIN) == [SORRY]
    assert find_refusal_prefixes(refusing(), batch, PLAIN, min_share=0.01) == sorted(
        [SORRY, I_CANNOT]
    )


def test_a_refusal_is_told_from_a_response_that_begins_alike() -> None:
    class Moody(nn.Module):
        """Starts every response with `i`; then refuses if the prompt contains a bomb."""

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
        ) -> torch.Tensor:
            logits = torch.zeros(*input_ids.shape, 47)
            for row, ids in enumerate(input_ids.tolist()):
                spoken = ids[-1] in (token("i"), token("cannot"), token("can"))
                follow = "cannot" if token("bomb") in ids else "can"
                logits[row, -1, token(follow if spoken else "i")] = 9.0
            return logits

    behavior = Behavior.response_prefix("refusal", PLAIN, ["cake", "cake", "bomb", "cake"])
    evaluation.calibrate(behavior, Moody())
    assert behavior.margins.prefixes == [I_CANNOT]
    margins = evaluation.evaluate(behavior, Moody()).margins
    assert margins.tolist() == [-9.0, -9.0, 9.0, -9.0]


def test_a_model_that_never_refuses_is_refused() -> None:
    behavior = Behavior.response_prefix("refusal", PLAIN, ["bake a cake"])
    with pytest.raises(BehaviorError, match=r"refuses none of the prompts.*give `prefixes`"):
        evaluation.calibrate(behavior, refusing())


def test_greedy_answers_are_those_of_generate() -> None:
    model = make_llama().eval()
    rows = [[3, 7, 9, 12], [8, 10], [5, 6, 7]]
    answers = greedy_decode(model, TokenBatch.pad(rows), 5)
    for row, answer in zip(rows, answers, strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            spoken = model.generate(
                ids, min_new_tokens=5, max_new_tokens=5, do_sample=False, eos_token_id=None
            )
        assert answer == spoken[0, len(row) :].tolist()
