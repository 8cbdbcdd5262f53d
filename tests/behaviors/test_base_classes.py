"""Plain functions, `MarginFunction`, `ProbeSet`, and behaviors that are split."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from riprap import Behavior, evaluation
from riprap.behaviors import LastLogitsMargin, MarginFunction, ProbeSet, TokenBatch
from riprap.errors import BehaviorError
from tiny import Bigram, make_llama, make_tokenizer

ROWS = [[3, 7], [5, 6], [8, 9], [10, 11], [12, 13]]


class Points(ProbeSet):
    """Probes without token ids."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def select(self, indices: list[int]) -> Points:
        return Points(self.values[indices])


class Lead(LastLogitsMargin):
    """Margin of the token 4 over the token 5; it needs no targets."""

    def from_logits(self, logits: Tensor) -> Tensor:
        return logits[:, 4] - logits[:, 5]


def test_a_plain_function_accepts_any_probes() -> None:
    probes = {"inputs": torch.tensor([1.0, -2.0])}
    behavior = Behavior("plain", probes, lambda model, given: model.weight * given["inputs"])
    model = nn.PReLU()
    assert behavior.probes is probes
    assert isinstance(behavior.margins, MarginFunction)
    assert behavior.losses is None and behavior.token_rows() is None
    assert evaluation.evaluate(behavior, model).margins.tolist() == [0.25, -0.5]


def test_losses_and_calibration_of_a_plain_function() -> None:
    calls: list[Any] = []
    behavior = Behavior(
        "plain",
        torch.ones(2),
        lambda model, probes: probes,
        losses=lambda model, probes: probes * 3,
        calibrate=lambda model, probes: calls.append(probes),
    )
    evaluation.calibrate(behavior, nn.PReLU())
    assert len(calls) == 1 and calls[0] is behavior.probes
    assert behavior.losses is not None
    assert behavior.losses(nn.PReLU(), behavior.probes).tolist() == [3.0, 3.0]
    assert behavior.margins.state_dict() is None  # what the function stored is unknown


def test_a_plain_function_keeps_its_losses_in_a_subset() -> None:
    behavior = Behavior(
        "points", Points(torch.arange(4.0)), lambda m, p: p.values, losses=lambda m, p: -p.values
    )
    part = behavior.subset([3, 1])
    assert part.margins(nn.PReLU(), part.probes).tolist() == [3.0, 1.0]
    assert part.losses is not None
    assert part.losses(nn.PReLU(), part.probes).tolist() == [-3.0, -1.0]


def test_a_last_logits_margin_of_a_user_shares_the_forward_pass() -> None:
    model = make_llama().eval()
    behaviors = [
        Behavior("lead", TokenBatch.pad(ROWS), Lead()),
        Behavior.next_token("words", ROWS, [4] * len(ROWS)),
    ]
    assert evaluation.group_by_forward_pass(behaviors, model) == [behaviors]
    shared = evaluation.evaluate_batch(behaviors, model)["lead"].margins
    assert shared == pytest.approx(evaluation.evaluate(behaviors[0], model).margins, abs=1e-5)


def test_a_margin_without_state_refuses_one() -> None:
    Lead().load_state_dict({})
    with pytest.raises(ValueError, match="Lead has no state, got prefixes"):
        Lead().load_state_dict({"prefixes": [1]})


def test_a_split_is_random_disjoint_and_repeatable() -> None:
    whole = Behavior.next_token("words", ROWS, [1, 2, 3, 4, 5], floor=0.6, contrast="other")
    measuring, replayed = whole.split(3)
    assert [len(measuring.probes), len(replayed.probes)] == [3, 2]
    rows = [*(measuring.token_rows() or []), *(replayed.token_rows() or [])]
    assert sorted(rows) == sorted(ROWS)
    assert (measuring.floor, replayed.contrast) == (0.6, "other")
    assert whole.split(3)[0].token_rows() == measuring.token_rows()
    assert {tuple(map(tuple, whole.split(3, seed)[0].token_rows() or [])) for seed in range(9)} != {
        tuple(map(tuple, measuring.token_rows() or []))
    }
    for n in (0, 5):
        with pytest.raises(BehaviorError, match=rf"'words': split\({n}\) of 5 probes .* 1 to 4"):
            whole.split(n)


def test_texts_without_prompts_are_predicted_from_their_first_token() -> None:
    tokenizer = make_tokenizer()
    model = Bigram().follow("how", "to", 2.0).follow("to", "make", 3.0)
    alone = Behavior.likelihood("style", tokenizer, texts=["how to make", "how to"])
    losses = alone.losses(model, alone.probes)  # type: ignore[misc]
    ids = torch.tensor([tokenizer("how to make")["input_ids"]])
    expected = nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
    assert losses[0].item() == pytest.approx(expected.item(), rel=1e-5)
    evaluation.calibrate(alone, model)
    assert evaluation.evaluate(alone, model).margins.tolist() == [0.5, 0.5]
    assert alone.token_rows() == [
        tokenizer(text)["input_ids"] for text in ("how to make", "how to")
    ]
