"""What cannot be watched is refused in one sentence that says what, where, and what would do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from riprap import Behavior
from riprap import evaluation as probing
from riprap.errors import BehaviorError
from tiny import PROMPTS, VOCABULARY, Bigram, PlainLM, make_tokenizer

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
    "no probes": (lambda: Behavior.next_token("b", [], []), "'b': no probes"),
    "empty probe": (
        lambda: Behavior.next_token("b", [[1], []], [1, 2]),
        "'b': probe 1 is empty",
    ),
    "targets": (
        lambda: Behavior.next_token("b", [[1], [2]], [1]),
        r"'b': 2 probes and targets of shape \(1,\); expected \(2,\)",
    ),
    "no prompts": (lambda: Behavior.response_prefix("b", CHAT, [], ["no"]), "'b': no prompts"),
    "empty prompt": (
        lambda: Behavior.response_prefix("b", CHAT, ["yes", "  "], ["no"]),
        "'b': prompt 1 is empty",
    ),
    "no openers": (lambda: Behavior.response_prefix("b", CHAT, PROMPTS, []), "'b': no openers"),
    "empty opener": (
        lambda: Behavior.response_prefix("b", CHAT, PROMPTS, ["no", ""]),
        "'b': continuation '' has no token",
    ),
    "openers to avoid": (
        lambda: Behavior.response_prefix("b", CHAT, PROMPTS, avoid=True),
        "'b': openers to avoid cannot be learned",
    ),
    "no template": (
        lambda: Behavior.response_prefix("b", make_tokenizer(chat=False), [TURNS], ["no"]),
        "'b': prompt 0 is a conversation.*no chat template",
    ),
    "nothing to lose": (
        lambda: Behavior.preference("b", CHAT, PROMPTS, ["no"], []),
        "'b': both keep and lose",
    ),
    "no prompts to contrast": (
        lambda: Behavior.preference("b", CHAT, [], ["no"], ["yes"]),
        "'b': no prompts",
    ),
    "counts of a choice": (
        lambda: Behavior.multiple_choice("b", CHAT, PROMPTS, [["a", "no"]], [0]),
        "'b': 4 prompts, 1 lists of options and 1 answers",
    ),
    "unequal options": (
        lambda: Behavior.multiple_choice("b", CHAT, ["a", "the"], [["a", "no"], ["a"]], [0, 0]),
        "'b': every prompt needs the same number of options",
    ),
    "one option": (
        lambda: Behavior.multiple_choice("b", CHAT, ["a"], [["a"]], [0]),
        "'b': every prompt needs .* two or more",
    ),
    "answer": (
        lambda: Behavior.multiple_choice("b", CHAT, ["a"], [["a", "no"]], [2]),
        "'b': answer 2 of probe 0 is no option's index",
    ),
    "no prompts to choose for": (
        lambda: Behavior.multiple_choice("b", CHAT, [], [], []),
        "'b': no prompts",
    ),
    "texts": (
        lambda: Behavior.likelihood("b", CHAT, PROMPTS, ["yes"]),
        "'b': 4 prompts and 1 texts",
    ),
    "empty text": (
        lambda: Behavior.likelihood("b", CHAT, ["a"], [""]),
        "'b': continuation '' has no token",
    ),
    "tolerance": (
        lambda: Behavior.likelihood("b", CHAT, PROMPTS, FOUR, tolerance=0),
        "'b': tolerance 0 must be above 0",
    ),
    "empty subset": (
        lambda: Behavior.next_token("b", [[1]], [2]).subset([]),
        "'b': give at least one index",
    ),
    "custom subset": (
        lambda: Behavior("b", [1, 2], lambda m, p: p).subset([0]),
        "'b': .*probes of a kind that Riprap built",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_when_made(case: str) -> None:
    make, words = REFUSED[case]
    with pytest.raises(BehaviorError, match=words) as refusal:
        make()
    assert "\n" not in str(refusal.value)


class Mute(nn.Module):
    """Answers with something in which there are no logits."""

    def forward(self, input_ids: Tensor) -> dict[str, int]:
        return {"answer": 3}


class Square(Bigram):
    """Gives one row of logits for the whole batch."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return super().forward(input_ids).mean(0)


UNREADABLE: dict[str, tuple[Callable[[], nn.Module], Callable[[], Behavior], str]] = {
    "opener outside": (
        Bigram,
        lambda: Behavior.response_prefix("b", CHAT, PROMPTS, [5000]),
        f"opener token 5000 lies outside the model's vocabulary of {len(VOCABULARY)}",
    ),
    "opener below": (
        Bigram,
        lambda: Behavior.response_prefix("b", CHAT, PROMPTS, [-1]),
        "opener 0 holds -1, which is no token id",
    ),
    "target outside": (
        Bigram,
        lambda: Behavior.next_token("b", [[1], [2]], [1, 999]),
        "target token 999 lies outside",
    ),
    "no attention mask": (
        PlainLM,
        lambda: Behavior.next_token("b", [[1, 2], [2]], [1, 2]),
        "different lengths.*no `attention_mask`.*one length",
    ),
    "no logits": (
        Mute,
        lambda: Behavior.next_token("b", [[1, 2]], [1]),
        "the model returned dict without logits.*custom margin",
    ),
    "other shape": (
        Square,
        lambda: Behavior.next_token("b", [[1, 2], [3, 4], [5, 6]], [1, 2, 3]),
        r"logits of shape \(2, 1, 47\) for 3 probes: expected \(n, T, vocabulary\)",
    ),
    "not started": (
        Bigram,
        lambda: Behavior.likelihood("b", CHAT, PROMPTS, FOUR),
        r"needs `start\(model\)`",
    ),
    "not calibrated": (
        Bigram,
        lambda: Behavior.response_prefix("b", CHAT, PROMPTS),
        r"without openers needs `start\(model\)`",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_refused_when_read(case: str) -> None:
    build, make, words = UNREADABLE[case]
    with pytest.raises(BehaviorError, match=words) as refusal:
        probing.look(make(), build())
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
