"""Probes of any kind: monitored, or refused in one sentence before training."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from riprap import Behavior, Monitor
from riprap.errors import BehaviorError, ConfigError
from tiny import PROMPTS, VOCABULARY, Bigram, PlainLM, make_gpt2, make_llama, make_tokenizer

CHAT, PLAIN = make_tokenizer(), make_tokenizer(chat=False)
SIZE = len(VOCABULARY)
IDS = st.integers(-3, SIZE + 3) | st.sampled_from([2**31, 2**63, 10**30, 1.5, None, "a", True])


def watch(behavior: Behavior, model: nn.Module | None = None) -> Monitor:
    model = Bigram() if model is None else model
    monitor = Monitor([behavior])
    with monitor.watch(model, torch.optim.SGD(model.parameters(), lr=1e-3)):
        pass
    return monitor


def is_monitored(make: Callable[[], Behavior], model: nn.Module | None = None) -> bool:
    """Return True if all margins are finite, False if the behavior was refused."""
    try:
        monitor = watch(make(), model)
    except BehaviorError as refused:
        assert 0 < len(str(refused)) < 1000
        assert "\n" not in str(refused)
        return False
    margins = next(iter(monitor.behavior_histories.values())).margins[-1]
    assert margins.ndim == 1
    assert torch.tensor(margins).isfinite().all()
    return True


@pytest.mark.filterwarnings("ignore")
@given(st.lists(st.lists(IDS, max_size=4), max_size=4), st.lists(IDS, max_size=4))
@settings(max_examples=60)
@example([[1, 2], [3]], [4, 5])
@example([], [])
@example([[0]], [0])
def test_token_ids_of_any_kind(rows: list[Any], targets: list[Any]) -> None:
    numbers = [part for row in [*rows, targets] for part in row]
    good = (
        len(rows) == len(targets) > 0
        and all(rows)
        and all(type(part) in (int, bool) and 0 <= part < SIZE for part in numbers)
    )
    assert is_monitored(lambda: Behavior.next_token("ids", rows, targets)) == good


@pytest.mark.parametrize(
    ("ids", "targets", "text"),
    [
        (torch.zeros(3), [1, 1, 1], "token ids"),
        (torch.zeros(2, 2), [1, 1], "integer token ids"),
        (torch.zeros(2, 2, 2).long(), [1, 1], "integer token ids"),
        ([[1.0]], [1], "integer token ids"),
        ("how", [1, 1, 1], "integer token ids"),
        ([[1], [2]], torch.ones(2, 1).long(), r"shape \(2, 1\); expected \(2,\)"),
        ([[1], [2]], torch.tensor([1.0, float("nan")]), "integer token ids, got torch.float32"),
        ([[1], [2]], ["a", "b"], "targets must be token ids"),
        ([[1], [-2]], [1, 1], "probe 1 contains -2, which is not a token id"),
    ],
)
def test_ids_of_a_wrong_kind_are_refused_when_made(ids: Any, targets: Any, text: str) -> None:
    with pytest.raises(BehaviorError, match=f"behavior 'ids'.*{text}"):
        Behavior.next_token("ids", ids, targets)


@pytest.mark.parametrize("make", [Bigram, make_llama, make_gpt2])
def test_ids_outside_the_vocabulary_are_refused(make: Callable[[], nn.Module]) -> None:
    behavior = Behavior.next_token("ids", [[1, SIZE], [1, 2]], [1, 1])
    with pytest.raises(BehaviorError, match=f"ids up to {SIZE}: .* own tokenizer"):
        watch(behavior, make())
    with pytest.raises(BehaviorError, match="target token 999 is outside"):
        watch(Behavior.next_token("ids", [[1], [2]], [1, 999]), make())


def test_a_probe_longer_than_the_context_is_refused() -> None:
    behavior = Behavior.response_prefix("long", CHAT, ["how to bake a cake " * 40], ["no"])
    with pytest.raises(BehaviorError, match=r"probes of 203 tokens .* context is smaller"):
        watch(behavior, make_gpt2())


class Sick(nn.Module):
    """Model whose logits are not numbers."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight, self.value = nn.Parameter(torch.ones(1)), value

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.weight * torch.full((*input_ids.shape, SIZE), self.value)


KINDS: dict[str, Callable[[], Behavior]] = {
    "next token": lambda: Behavior.next_token("sick", [[1, 2]], [3]),
    "response prefix": lambda: Behavior.response_prefix("sick", CHAT, ["how to"], ["no"]),
    "preference": lambda: Behavior.preference("sick", CHAT, ["how"], ["no"], ["yes"]),
    "multiple choice": lambda: Behavior.multiple_choice(
        "sick", CHAT, ["how"], [["no", "yes"]], [0]
    ),
    "likelihood": lambda: Behavior.likelihood("sick", CHAT, texts=["no"], prompts=["how"]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_numbers_are_refused(kind: str, value: float) -> None:
    with pytest.raises(BehaviorError, match=r"'sick'.*finite"):
        watch(KINDS[kind](), Sick(value))


TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "",
        " ",
        "\t\n",
        "\u200b",
        "\u00a0",
        "🪨" * 9,
        "שלום",
        "\u202eevil",
        "e\u0301",
        "\x00",
        "\ud800",
    ]
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tokenizer", [CHAT, PLAIN], ids=["chat", "plain"])
@given(st.lists(TEXTS, max_size=3), st.lists(TEXTS | IDS, max_size=2))
@settings(max_examples=40)
@example(["👩‍👩‍👧 שלום \u200b \u202e a"], ["no"])
@example(["how to"], ["\ud800"])
def test_prompts_and_prefixes_of_any_kind(tokenizer: Any, prompts: Any, prefixes: Any) -> None:
    blank = not prompts or not all(text.strip() for text in prompts)
    done = is_monitored(lambda: Behavior.response_prefix("text", tokenizer, prompts, prefixes))
    assert not (done and (blank or not prefixes))


def test_words_in_any_script_are_monitored() -> None:
    prompts = ["👩‍👩‍👧", "שלום עולם", "a\u200bb", "\u202elive", "naïve", "x" * 1000]
    assert is_monitored(
        lambda: Behavior.response_prefix("text", CHAT, prompts, ["no"]), make_llama()
    )


TURNS = [{"role": "user", "content": "how"}]
ODD: dict[str, tuple[Callable[[], Behavior], str]] = {
    "letters": (
        lambda: Behavior.response_prefix("b", CHAT, "how to", ["no"]),
        "prompts must be a list",
    ),
    "prefix": (
        lambda: Behavior.response_prefix("b", CHAT, PROMPTS, "no"),
        "prefixes must be a list",
    ),
    "chosen": (lambda: Behavior.preference("b", CHAT, ["a"], "no", ["a"]), "must be a list"),
    "number": (
        lambda: Behavior.response_prefix("b", CHAT, [3], ["no"]),
        "prompt 0 is of type int; give a text or a conversation",
    ),
    "bytes": (lambda: Behavior.response_prefix("b", CHAT, ["a", b"x"], ["no"]), "prompt 1"),
    "nothing": (lambda: Behavior.response_prefix("b", CHAT, [None], ["no"]), "prompt 0 is None"),
    "turns": (lambda: Behavior.response_prefix("b", CHAT, [[{"a": "b"}]], ["no"]), "prompt 0"),
    "turns of text": (lambda: Behavior.response_prefix("b", CHAT, [["how"]], ["no"]), "prompt 0"),
    "no content": (lambda: Behavior.response_prefix("b", CHAT, [[*TURNS, {}]], ["no"]), "prompt 0"),
    "float prefix": (
        lambda: Behavior.response_prefix("b", CHAT, PROMPTS, [1.5]),
        "integer token ids",
    ),
    "huge prefix": (
        lambda: Behavior.response_prefix("b", CHAT, PROMPTS, [10**30]),
        "not a token id",
    ),
    "half a pair": (lambda: Behavior.response_prefix("b", CHAT, ["\ud800"], ["no"]), "prompt 0"),
    "no tokenizer": (
        lambda: Behavior.response_prefix("b", None, ["how"], ["no"]),
        "the tokenizer is None; give the model's tokenizer",
    ),
    "name of a tokenizer": (
        lambda: Behavior.response_prefix("b", "gpt2", ["how"], ["no"]),
        "the tokenizer is the text 'gpt2'",
    ),
    "model as tokenizer": (
        lambda: Behavior.response_prefix("b", PlainLM(), ["how"], ["no"]),
        "the tokenizer is a model \\(PlainLM\\)",
    ),
    "object as tokenizer": (
        lambda: Behavior.multiple_choice("b", 3, ["a"], [["a", "no"]], [0]),
        "the tokenizer is a int, which cannot be called",
    ),
    "no prompts": (lambda: Behavior.preference("b", CHAT, [], ["a"], ["no"]), "no prompts"),
    "prompts are none": (
        lambda: Behavior.likelihood("b", CHAT, texts=None),  # type: ignore[arg-type]
        "texts must be a list, got NoneType",
    ),
    "a turn": (lambda: Behavior.response_prefix("b", CHAT, TURNS, ["no"]), "is a turn of a conv"),
    "mapping": (
        lambda: Behavior.response_prefix("b", CHAT, {"a": 1}, ["no"]),  # type: ignore[arg-type]
        "prompts must be a list, got dict",
    ),
    "option": (
        lambda: Behavior.multiple_choice("b", CHAT, ["a"], [["a", 4]], [0]),  # type: ignore[list-item]
        "option 1 of prompt 0 is of type int",
    ),
    "options": (
        lambda: Behavior.multiple_choice("b", CHAT, ["a"], ["ab"], [0]),
        "options of prompt 0 must be a list of texts",
    ),
    "text": (lambda: Behavior.likelihood("b", CHAT, texts=["no", 3]), "text 1 is of type int"),
    "answer": (
        lambda: Behavior.multiple_choice("b", CHAT, ["a"], [["a", "no"]], [0.5]),
        "right answer 0.5",
    ),
    "tolerance": (
        lambda: Behavior.likelihood("b", CHAT, texts=["no"], tolerance=float("nan")),
        "tolerance nan must be positive",
    ),
    "floor": (lambda: Behavior("b", 1, len, floor="high"), "floor 'high'"),  # type: ignore[arg-type]
    "long name": (lambda: Behavior("b" * 100_000, 1, len), "at most 200 characters"),
    "half a name": (lambda: Behavior("b\ud800", 1, len), "half of a surrogate pair"),
    "name": (lambda: Behavior(3, 1, len), "needs a name"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", ODD)
def test_unusable_arguments_are_refused(case: str) -> None:
    make, text = ODD[case]
    with pytest.raises(BehaviorError, match=text) as raised:
        make()
    assert len(str(raised.value)) < 1000


def named(name: str) -> Behavior:
    return Behavior(name, 3, lambda net, n: net.table.sum() * 0 + torch.ones(n))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("refusal", "refusal"),
        (unicodedata.normalize("NFC", "naïve"), unicodedata.normalize("NFD", "naïve")),
        ("a\x1b", "a\\x1b"),
    ],
)
def test_names_that_look_alike_are_refused(one: str, two: str) -> None:
    with pytest.raises(ConfigError, match="names must be unique"):
        Monitor([named(one), named(two)])


def test_names_that_differ_are_distinct() -> None:
    names = ["refusal", "Refusal", "refusal ", "rеfusal", "re|fusal"]  # the fourth is Cyrillic
    monitor = Monitor([named(name) for name in names])
    model = Bigram()
    with monitor.watch(model, torch.optim.SGD(model.parameters(), lr=1e-3)):
        pass
    assert set(monitor.history().behavior) >= set(names)


@pytest.mark.parametrize("behaviors", [["refusal"], [None], named("alone"), "refusal"])
def test_only_a_list_of_behaviors_is_accepted(behaviors: Any) -> None:
    with pytest.raises(ConfigError, match="nothing to monitor: give a list of behaviors"):
        Monitor(behaviors)


@pytest.mark.parametrize("every", [float("nan"), 2.5, "10", None, 0])
def test_an_invalid_probe_interval_is_refused(every: Any) -> None:
    with pytest.raises(ConfigError, match="give a whole number"):
        Monitor([named("x")], probe_every=every)
