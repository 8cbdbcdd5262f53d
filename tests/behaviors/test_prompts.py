"""Prompts as the model sees them: system prompts, reasoning templates, end tokens, kept texts."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from byte_tokens import make_bytes_tokenizer
from riprap import Behavior, probe_sets
from riprap.behaviors import Margins, TokenBatch, encode_prompts
from riprap.errors import BehaviorError
from tiny import PROMPTS, make_tokenizer

TURNS = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n"
)
OPEN = "<think>\n"  # as DeepSeek-R1 and QwQ
SWITCH = "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"
QWEN = (
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


def chat(ending: str, before: str = TURNS) -> Any:
    tokenizer = make_bytes_tokenizer()
    tokenizer.chat_template = before + ending + "{% endif %}"
    return tokenizer


def seen(tokenizer: Any, *args: Any, **options: Any) -> str:
    return str(tokenizer.decode(encode_prompts(tokenizer, *args, **options)[0]))


def test_a_system_prompt_stands_before_prompts_that_have_none() -> None:
    assert seen(chat(""), ["Hi"], "Be kind.") == "<system>Be kind.\n<user>Hi\n<assistant>\n"
    own = [{"role": "system", "content": "Own"}, {"role": "user", "content": "Hi"}]
    assert seen(chat(""), [own], "Be kind.") == "<system>Own\n<user>Hi\n<assistant>\n"
    assert seen(chat(""), ["Hi"]) == "<user>Hi\n<assistant>\n"


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (OPEN, "<assistant>\n<think>\n\n</think>\n\n"),
        ("<think>", "<assistant>\n<think>\n\n</think>\n\n"),
        (SWITCH, "<assistant>\n"),
        (QWEN, "<assistant>\n<think>\n\n</think>\n\n"),
    ],
)
def test_probes_stand_after_the_thought(ending: str, expected: str) -> None:
    with pytest.warns(UserWarning, match="stand where the answer begins") as warned:
        text = seen(chat(ending), ["Hi", "Ho"])
    assert text == "<user>Hi\n" + expected
    assert len(warned) == 1


def test_a_prompt_that_speaks_of_thoughts_is_no_thought(recwarn: pytest.WarningsRecorder) -> None:
    assert seen(chat(""), ["What is <think>?"]).endswith("<assistant>\n")
    assert seen(chat(QWEN), ["Hi"], None, {"enable_thinking": True}).endswith("<assistant>\n")
    assert seen(chat(SWITCH), ["Hi"], None, {"enable_thinking": False}).endswith("<assistant>\n")
    assert not recwarn.list


@pytest.mark.parametrize(
    ("tokenizer", "options", "says"),
    [
        (
            chat(SWITCH),
            {"chat_template_kwargs": {"enable_thinking": True}},
            "enable_thinking=False",
        ),
        (chat(SWITCH), {"chat_template_kwargs": {"enable_thinkin": 1}}, "did you mean 'enable_th"),
        (chat(""), {"chat_template_kwargs": {"tokenize": False}}, "'tokenize', which is set here"),
        (chat(""), {"chat_template_kwargs": ["a"]}, "must be a dict, got list"),
        (chat(""), {"system": 3}, "system must be a text, got int"),
        (chat("", "{{ messages[-1]['content'] }}{% if true %}"), {"system": "S"}, "leaves out the"),
        (make_tokenizer(chat=False), {"system": "S"}, "no chat template"),
        (make_tokenizer(chat=False), {"chat_template_kwargs": {"a": 1}}, "no chat template"),
    ],
)
def test_arguments_without_effect_are_refused(
    tokenizer: Any, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(BehaviorError, match=says):
        Behavior.response_prefix("r", tokenizer, ["how"], ["no"], **options)


def test_every_constructor_takes_a_system_prompt() -> None:
    tokenizer, more = chat(QWEN), {"system": "Be kind.", "chat_template_kwargs": {
        "enable_thinking": False}}  # fmt: skip
    made = [
        Behavior.response_prefix("a", tokenizer, ["Hi"], ["No, I"], **more),
        Behavior.preference("b", tokenizer, ["Hi"], ["y"], ["n"], **more),
        Behavior.multiple_choice("c", tokenizer, ["Hi"], [["y", "n"]], [0], **more),
        Behavior.likelihood("d", tokenizer, texts=["yes"], prompts=["Hi"], **more),
        probe_sets.load("refusal", tokenizer, 2, **more),
        probe_sets.load("arithmetic", tokenizer, 2, **more),
        probe_sets.load("instruction_format", tokenizer, 2, **more),
    ]
    for behavior in made:
        rows = behavior.token_rows()
        assert rows is not None
        text = tokenizer.decode(rows[0])
        assert text.startswith("<system>Be kind.\n<user>"), behavior
        assert "<think>\n\n</think>\n\n" in text
        assert behavior.tokenizer is tokenizer
    with pytest.raises(BehaviorError, match="without prompts"):
        Behavior.likelihood("d", tokenizer, texts=["yes"], **more)


def ending_tokenizer() -> Any:
    """A tokenizer that puts <user> before and <eos> after every text."""
    tokenizer = make_tokenizer(chat=False)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<user> $A <eos>", special_tokens=[("<user>", 3), ("<eos>", 2)]
    )
    return tokenizer


def test_end_tokens_that_a_tokenizer_appends_are_taken_off() -> None:
    tokenizer, plain = ending_tokenizer(), make_tokenizer(chat=False)
    assert tokenizer("how to")["input_ids"][-1] == 2
    bare = plain("how to")["input_ids"]
    made = [
        Behavior.response_prefix("a", tokenizer, ["how to"], ["no", "i can"]),
        Behavior.multiple_choice("b", tokenizer, ["how to"], [["no", "i can"]], [0]),
        Behavior.preference("c", tokenizer, ["how to"], ["no"], ["i can"]),
        Behavior.likelihood("d", tokenizer, texts=["i can"], prompts=["how to"]),
    ]
    for behavior in made:
        batch = getattr(behavior.probes, "batch", behavior.probes)
        for row in batch.rows():
            assert row[: 1 + len(bare)] == [3, *bare] and 2 not in row, behavior
    assert all(2 not in prefix for prefix in made[0].margins.prefixes)
    alone = Behavior.likelihood("e", tokenizer, texts=["i can"])
    assert alone.probes.batch.rows() == [[3, *plain("i can")["input_ids"]]]
    assert encode_prompts(tokenizer, ["how <eos>"])[0] == [3, bare[0], 2]  # the user's own


def test_texts_and_tokenizer_survive_subsets_splits_and_copies() -> None:
    tokenizer = make_tokenizer()
    talk = [{"role": "user", "content": [{"type": "text", "text": "one two"}]}]
    behavior = Behavior.response_prefix("r", chat(""), [*PROMPTS, talk], None)
    assert behavior.texts == [*PROMPTS, "one two"]
    assert len(behavior) == 5 and behavior.subset([2, 0]).texts == [PROMPTS[2], PROMPTS[0]]
    one, other = behavior.split(2)
    assert sorted([*(one.texts or []), *(other.texts or [])]) == sorted(behavior.texts or [])
    for copied in (pickle.loads(pickle.dumps(behavior)), copy.deepcopy(behavior)):
        assert copied.texts == behavior.texts
        assert copied.tokenizer.decode([65]) == behavior.tokenizer.decode([65])
        assert torch.equal(copied.probes.input_ids, behavior.probes.input_ids)
    assert Behavior.next_token("n", [[1, 2]], [3]).texts is None
    words = Behavior.likelihood("l", tokenizer, texts=["i can", "no no"])
    assert words.texts == ["i can", "no no"]
    assert probe_sets.load("arithmetic", chat(""), 3).texts is not None


def test_reprs_are_short() -> None:
    behavior = Behavior.response_prefix("r", make_tokenizer(), PROMPTS, ["no", "i can"])
    assert repr(behavior) == "Behavior('r', 4 probes, ResponsePrefix, floor=0.9)"
    assert repr(behavior.probes) == "TokenBatch(4 rows of up to 8 tokens)"
    assert repr(behavior.margins) == "ResponsePrefix(2 prefixes, avoid=False)"
    choice = Behavior.multiple_choice(
        "c", make_tokenizer(), PROMPTS, [["no", "i can"]] * 4, [0] * 4
    )
    assert repr(choice.probes) == "Continuations(4 probes, 2 options, up to 10 tokens)"
    assert repr(Margins(torch.ones(3))) == "Margins(shape (3,))"
    own = Behavior("own", 3, lambda model, probes: probes)
    assert repr(own) == "Behavior('own', probes, PlainMargin, floor=0.9)" and bool(own)
    assert "tensor" not in repr([behavior, TokenBatch.pad([[1], [2, 3]])])
