"""Errors of unusable behaviors: one sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from riprap import Behavior, evaluation
from riprap.behaviors import NextToken
from riprap.errors import BehaviorError
from tiny import PROMPTS, VOCABULARY, Bigram, make_tokenizer

CHAT = make_tokenizer()
TURNS = [{"role": "user", "content": "a cake"}]
FOUR = ["yes"] * 4

REFUSED: dict[str, tuple[Callable[[], Behavior], str]] = {
    "no name": (lambda: Behavior("", None, lambda m, p: p), "needs a name"),
    "floor": (
        lambda: Behavior("b", None, lambda m, p: p, floor=1.2),
        r"'b': floor 1.2 .*\(0, 1\]",
    ),
    "no function": (lambda: Behavior("b", None, 3), "'b': margins must be a function"),
    "no probes": (lambda: Behavior.next_token("b", [], []), "'b': there are no probes"),
    "empty probe": (
        lambda: Behavior.next_token("b", [[1], []], [1, 2]),
        "'b': probe 1 is empty",
    ),
    "targets": (
        lambda: Behavior.next_token("b", [[1], [2]], [1]),
        r"'b': 2 probes and targets of shape \(1,\); expected \(2,\)",
    ),
    "no prompts": (
        lambda: Behavior.response_prefix("b", CHAT, [], ["no"]),
        "'b': there are no prompts",
    ),
    "empty prompt": (
        lambda: Behavior.response_prefix("b", CHAT, ["yes", "  "], ["no"]),
        "'b': prompt 1 is empty",
    ),
    "no prefixes": (
        lambda: Behavior.response_prefix("b", CHAT, PROMPTS, []),
        "'b': there are no prefixes",
    ),
    "empty prefix": (
        lambda: Behavior.response_prefix("b", CHAT, PROMPTS, ["no", ""]),
        "'b': continuation '' has no token",
    ),
    "prefixes to avoid": (
        lambda: Behavior.response_prefix("b", CHAT, PROMPTS, avoid=True),
        "'b': prefixes to avoid cannot be found",
    ),
    "no template": (
        lambda: Behavior.response_prefix("b", make_tokenizer(chat=False), [TURNS], ["no"]),
        "'b': prompt 0 is a conversation.*no chat template",
    ),
    "nothing rejected": (
        lambda: Behavior.preference("b", CHAT, PROMPTS, ["no"], []),
        "'b': `chosen` and `rejected` need",
    ),
    "no prompts to contrast": (
        lambda: Behavior.preference("b", CHAT, [], ["no"], ["yes"]),
        "'b': there are no prompts",
    ),
    "counts of a choice": (
        lambda: Behavior.multiple_choice("b", CHAT, PROMPTS, [["a", "no"]], [0]),
        "'b': 4 prompts, 1 lists of options and 1 right answers",
    ),
    "unequal options": (
        lambda: Behavior.multiple_choice("b", CHAT, ["a", "the"], [["a", "no"], ["a"]], [0, 0]),
        "'b': every prompt needs the same number of options",
    ),
    "one option": (
        lambda: Behavior.multiple_choice("b", CHAT, ["a"], [["a"]], [0]),
        "'b': every prompt needs .* at least two",
    ),
    "right answer": (
        lambda: Behavior.multiple_choice("b", CHAT, ["a"], [["a", "no"]], [2]),
        "'b': right answer 2 of probe 0 is not the index of an option",
    ),
    "no prompts to choose for": (
        lambda: Behavior.multiple_choice("b", CHAT, [], [], []),
        "'b': there are no prompts",
    ),
    "texts": (
        lambda: Behavior.likelihood("b", CHAT, texts=["yes"], prompts=PROMPTS),
        "'b': 4 prompts and 1 texts",
    ),
    "empty text": (
        lambda: Behavior.likelihood("b", CHAT, texts=[""], prompts=["a"]),
        "'b': continuation '' has no token",
    ),
    "tolerance": (
        lambda: Behavior.likelihood("b", CHAT, texts=FOUR, prompts=PROMPTS, tolerance=0),
        "'b': tolerance 0 must be positive",
    ),
    "short text": (
        lambda: Behavior.likelihood("b", CHAT, texts=["yes no", "a"]),
        "'b': text 'a' has fewer than two tokens",
    ),
    "losses twice": (
        lambda: Behavior("b", None, NextToken(torch.tensor([1])), losses=lambda m, p: p),
        "'b': .*NextToken has its own",
    ),
    "empty part": (
        lambda: Behavior.next_token("b", [[1]], [2]).split(1)[0],
        r"'b': split\(1\) of 1 probes",
    ),
    "empty subset": (
        lambda: Behavior.next_token("b", [[1]], [2]).subset([]),
        "'b': give at least one index",
    ),
    "custom subset": (
        lambda: Behavior("b", [1, 2], lambda m, p: p).subset([0]),
        "'b': .*ProbeSet",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_when_made(case: str) -> None:
    make, words = REFUSED[case]
    with pytest.raises(BehaviorError, match=words) as refusal:
        make()
    assert "\n" not in str(refusal.value)


class Mute(nn.Module):
    """Returns an output without logits."""

    def forward(self, input_ids: Tensor) -> dict[str, int]:
        return {"answer": 3}


class Square(Bigram):
    """Returns one row of logits for the whole batch."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return super().forward(input_ids).mean(0)


UNREADABLE: dict[str, tuple[Callable[[], nn.Module], Callable[[], Behavior], str]] = {
    "prefix outside": (
        Bigram,
        lambda: Behavior.response_prefix("b", CHAT, PROMPTS, [5000]),
        f"prefix token 5000 is outside the model's vocabulary of {len(VOCABULARY)}",
    ),
    "negative prefix": (
        Bigram,
        lambda: Behavior.response_prefix("b", CHAT, PROMPTS, [-1]),
        "prefix 0 contains -1, which is not a token id",
    ),
    "target outside": (
        Bigram,
        lambda: Behavior.next_token("b", [[1], [2]], [1, 999]),
        "target token 999 is outside",
    ),
    "no logits": (
        Mute,
        lambda: Behavior.next_token("b", [[1, 2]], [1]),
        "the model returned dict without logits.*custom margin",
    ),
    "other shape": (
        Square,
        lambda: Behavior.next_token("b", [[1, 2], [3, 4], [5, 6]], [1, 2, 3]),
        r"logits of shape \(2, 1, 47\) for 3 probes; expected \(n, T, vocabulary\)",
    ),
    "likelihood not calibrated": (
        Bigram,
        lambda: Behavior.likelihood("b", CHAT, texts=FOUR, prompts=PROMPTS),
        r"call `calibrate\(model, probes\)` first",
    ),
    "prefixes not calibrated": (
        Bigram,
        lambda: Behavior.response_prefix("b", CHAT, PROMPTS),
        r"prefixes are not known; call `calibrate",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_refused_when_read(case: str) -> None:
    build, make, words = UNREADABLE[case]
    with pytest.raises(BehaviorError, match=words) as refusal:
        evaluation.evaluate(make(), build())
    assert "\n" not in str(refusal.value)


def test_a_subset_keeps_everything_but_its_probes() -> None:
    whole = Behavior.next_token("b", [[1, 2], [3], [4, 5, 6]], [7, 8, 9], 0.8, contrast="other")
    part = whole.subset([2, 0])
    assert (part.name, part.floor, part.contrast) == ("b", 0.8, "other")
    assert part.probes.input_ids.tolist() == [[4, 5, 6], [0, 1, 2]]
    assert part.losses is not None
    torch.manual_seed(0)
    model = Bigram()
    with torch.no_grad():
        model.table.normal_()
    assert part.losses(model, part.probes).tolist() == pytest.approx(
        whole.losses(model, whole.probes)[[2, 0]].tolist()
    )
