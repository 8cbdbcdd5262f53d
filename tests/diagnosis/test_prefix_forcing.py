"""Prefix forcing against plain float64 loops, and what it distinguishes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from moved import WORLD, adapted, eroded, start, untouched, weights
from riprap.diagnosis.evidence import _responses as module
from riprap.diagnosis.evidence._prefix_forcing import prefix_forcing
from riprap.diagnosis.evidence._responses import greedy_responses
from riprap.errors import BehaviorError, ConfigError
from riprap.types import ReadingStatus
from tiny import Bigram, make_llama, token

PROMPTS = [[3, 8, 11, 4], [3, 19, 4], [3, 9, 9, 30, 12, 4], [3, 7, 22, 4], [3, 16, 4]]
RESPONSES = [[9, 12, 14, 20, 5], [18, 6, 7], [19, 20, 21, 22, 9, 9], [7, 7], [14, 30, 31, 8]]


def by_hand(model: nn.Module, count: int) -> tuple[float, float, float, int]:
    """One row at a time, without padding, in float64."""
    model = model.double().eval()
    firsts, wholes, means = [], [], []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        if len(response) <= count:
            continue
        hits, values = [], []
        for at in range(count, len(response)):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + response[:at]])).logits[0, -1].numpy()
            hits.append(int(logits.argmax()) == response[at])
            total = logits.max() + np.log(np.exp(logits - logits.max()).sum())
            values.append(logits[response[at]] - total)
        firsts.append(hits[0])
        wholes.append(all(hits))
        means.append(np.mean(values))
    return float(np.mean(firsts)), float(np.mean(wholes)), float(np.mean(means)), len(firsts)


@pytest.mark.parametrize("logits", [2**24, 100])
def test_equal_to_the_reference(logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LOGITS", logits)  # small: a batch for each prompt
    found = prefix_forcing(make_llama(), PROMPTS, RESPONSES, counts=(0, 1, 2))
    assert found.reference is None
    for count in (0, 1, 2):
        given = found.at(count)
        first, whole, mean, n = by_hand(make_llama(), count)
        assert given.n == n
        assert given.next_token is not None
        assert given.full_response is not None
        assert given.log_prob is not None
        assert (given.next_token.mean, given.full_response.mean) == (first, whole)
        assert given.log_prob.mean == pytest.approx(mean, rel=1e-4)
        assert given.next_token.low <= first <= given.next_token.high
        assert given.next_token.low < given.next_token.high  # also where all or none hit


def test_only_the_beginning_of_the_response_was_lost() -> None:
    """After "sorry" the rest follows; but the model no longer says "sorry" of itself."""
    model = Bigram()
    for before, after in (("sorry", "i"), ("i", "cannot"), ("cannot", "do"), ("bomb", "sure")):
        model.follow(before, after)
    response = [token(word) for word in ("sorry", "i", "cannot", "do")]
    found = prefix_forcing(model, [[token("bomb")]] * 3, [response] * 3, counts=(0, 1, 2))
    shares = [
        (given.next_token.mean, given.full_response.mean)
        for given in found.now
        if given.next_token and given.full_response
    ]
    assert shares == [(0, 0), (1, 1), (1, 1)]


def test_too_short_responses_are_no_evidence() -> None:
    found = prefix_forcing(make_llama(), PROMPTS, RESPONSES, counts=(3, 4))
    assert [given.n for given in found.now] == [3, 2]
    assert [given.status for given in found.now] == [
        ReadingStatus.MEASURED,
        ReadingStatus.INSUFFICIENT,
    ]
    short = found.at(4)
    assert "2 of 5 responses" in short.detail
    assert short.next_token is short.full_response is short.log_prob is None


def test_the_reference_is_read_too() -> None:
    model = adapted()
    with untouched(model):
        found = prefix_forcing(model, PROMPTS, RESPONSES)
    assert found.reference == prefix_forcing(make_llama(), PROMPTS, RESPONSES).now
    assert found.now != found.reference
    model, reference = eroded(), start()
    behavior = WORLD.behaviors()[0]
    answers = greedy_responses(reference, behavior, 2)
    for there in (reference, weights(reference)):
        with untouched(model):
            toy = prefix_forcing(model, behavior, answers, counts=(0, 1), reference=there)
        assert toy.reference is not None
        assert [given.full_response.mean for given in toy.reference if given.full_response] == [
            1,
            1,
        ]
    assert toy.now[0].next_token is not None
    assert toy.now[0].next_token.mean < 0.9


def test_responses_are_the_greedy_ones() -> None:
    model = make_llama().eval()
    found = greedy_responses(model, PROMPTS, 6)
    for prompt, response in zip(PROMPTS, found, strict=True):
        row = list(prompt)
        for said in response:
            with torch.no_grad():
                assert int(model(torch.tensor([row])).logits[0, -1].argmax()) == said
            row.append(said)
    assert len({tuple(response) for response in found}) > 1


def test_a_response_ends_where_the_model_ends_it() -> None:
    model = make_llama()
    second = greedy_responses(model, PROMPTS[:1], 4)[0][1]
    model.generation_config.eos_token_id = second
    assert greedy_responses(model, PROMPTS[:1], 4)[0][-1] == second
    assert len(greedy_responses(model, PROMPTS[:1], 4)[0]) <= 2


def test_responses_of_a_model_that_cannot_generate() -> None:
    model = Bigram().follow("bomb", "sorry").follow("sorry", "i").follow("cake", "sure")
    rows = [[token("bomb")], [token("a"), token("cake")]]
    found = greedy_responses(model, rows, 2)
    assert found[0] == [token("sorry"), token("i")]
    assert found[1][0] == token("sure")


def test_what_does_not_fit_is_refused() -> None:
    model = make_llama()
    with pytest.raises(BehaviorError, match="one response per prompt"):
        prefix_forcing(model, PROMPTS, RESPONSES[:2])
    with pytest.raises(BehaviorError, match="response 1 is empty"):
        prefix_forcing(model, PROMPTS[:2], [[3], []])
    with pytest.raises(BehaviorError, match="no prompts"):
        prefix_forcing(model, [], [])
    with pytest.raises(ConfigError, match="counts"):
        prefix_forcing(model, PROMPTS, RESPONSES, counts=(-1,))
