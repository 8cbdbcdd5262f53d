"""Tokens of conversations: the loss is on the turns of the assistant, under any chat template."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import trl
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from riprap.commands._conversations import Row
from riprap.commands._data import DataConfig, load_rows, read_rows
from riprap.commands._encoding import (
    EncodedRow,
    Encoder,
    encode_rows,
    print_data,
    require_rows_of_tokens,
)
from riprap.errors import ConfigError
from riprap.selection import IGNORE_INDEX
from tiny import VOCABULARY, make_llama, make_tokenizer

PLAIN = make_tokenizer().chat_template
MARKED = (
    "{% for turn in messages %}{{ '<' + turn['role'] + '> ' }}{% if turn['role'] == 'assistant' %}"
    "{% generation %}{{ turn['content'] + ' <end> ' }}{% endgeneration %}{% else %}"
    "{{ turn['content'] + ' <end> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
# Earlier answers lose their first word, as reasoning templates drop earlier thoughts.
FORGETFUL = (
    "{% for turn in messages %}{{ '<' + turn['role'] + '> ' }}"
    "{% if turn['role'] == 'assistant' and not loop.last %}{{ turn['content'].split(' ')[1] }}"
    "{% else %}{{ turn['content'] }}{% endif %}{{ ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
# The prompt opens a thought that the finished turn does not have.
OPENING = PLAIN.replace("{{ '<assistant>' }}", "{{ '<assistant> what ' }}")
FIRST_ONLY = "{% if messages[0]['role'] == 'system' %}{% endif %}" + PLAIN
WITHOUT_SYSTEM = PLAIN.replace(
    "{% for turn in messages %}", "{% for turn in messages if turn['role'] != 'system' %}"
)
TURNS = [("user", "how"), ("assistant", "yes no"), ("user", "what"), ("assistant", "red blue")]


def tokenizer(template: str = PLAIN) -> Any:
    made = make_tokenizer()
    made.chat_template = template
    return made


def row(turns: list[tuple[str, str]], learned: tuple[bool, ...] | None = None, **more: Any) -> Row:
    made = tuple({"role": role, "content": text} for role, text in turns)
    return Row(1, made, learned or tuple(r == "assistant" for r, _ in turns), **more)


def shown(template: str, one: Row, **options: Any) -> str:
    """The row as text, with what is learned in brackets."""
    made = tokenizer(template)
    encoded = Encoder(made, **options).encode(one)
    words = made.convert_ids_to_tokens(encoded.ids)
    pairs = zip(words, encoded.labels, strict=True)
    text = " ".join(word if label == IGNORE_INDEX else f"[{word}]" for word, label in pairs)
    return text.replace("] [", " ")


@pytest.mark.parametrize("template", [PLAIN, MARKED, OPENING, FIRST_ONLY])
def test_every_answer_is_learned_and_nothing_else(template: str) -> None:
    assert shown(template, row(TURNS)) == (
        "<user> how <end> <assistant> [yes no <end>] <user> what <end> <assistant> [red blue <end>]"
    )


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_an_answer_of_weight_0_is_read_only(template: str) -> None:
    weights = (False, False, False, True)
    assert shown(template, row(TURNS, weights)) == (
        "<user> how <end> <assistant> yes no <end> <user> what <end> <assistant> [red blue <end>]"
    )
    weights = (False, True, False, False)
    assert shown(template, row(TURNS, weights)) == (
        "<user> how <end> <assistant> [yes no <end>] <user> what <end> <assistant> red blue <end>"
    )


@pytest.mark.parametrize("template", [PLAIN, MARKED, FIRST_ONLY])
def test_a_first_turn_of_the_assistant_is_learned(template: str) -> None:
    assert shown(template, row(TURNS[1:])).startswith("<assistant> [yes no <end>] <user> what")


def test_an_answer_that_changes_later_is_refused_unless_it_is_the_last() -> None:
    assert shown(FORGETFUL, row(TURNS, (False, False, False, True))).endswith("[red blue <end>]")
    assert shown(FORGETFUL, row(TURNS[:2])) == "<user> how <end> <assistant> [yes no <end>]"
    with pytest.raises(ConfigError, match=r"row 1: .* renders turn 2 differently once later turns"):
        shown(FORGETFUL, row(TURNS))


def test_a_prompt_that_changes_is_refused() -> None:
    """A template that numbers its turns from the end: no prompt is a beginning of the whole."""
    numbered = (
        "{% for turn in messages %}{{ '<user> ' * loop.revindex + turn['content'] + ' <end> ' }}"
        "{% endfor %}"
    )
    with pytest.raises(ConfigError, match="differently once later turns follow"):
        shown(numbered, row(TURNS[:2]))


def test_arguments_reach_the_template() -> None:
    template = "{{ '<unk> ' if thinking else '' }}" + PLAIN
    assert shown(template, row(TURNS[:2]), template_kwargs={"thinking": True}).startswith("<unk> ")
    assert not shown(template, row(TURNS[:2])).startswith("<unk>")
    own = row(TURNS[:2], template_kwargs={"thinking": True})
    assert shown(template, own, template_kwargs={"thinking": False}).startswith("<unk> ")


def test_rows_are_cut_and_counted() -> None:
    """`how <end>` takes the row past its answer; what has no answer left is left out."""
    rows = [row(TURNS), row(TURNS[:2]), row([("user", "how " * 20), ("assistant", "no")])]
    found = encode_rows(rows, tokenizer(), 9)
    assert [len(one.ids) for one in found.rows] == [14, 7]  # the trainer cuts
    assert found.notes == {
        "longer than max_length 9, which are cut": 1,
        "with no answer within max_length 9, left out": 1,
    }
    with pytest.raises(ConfigError, match="no row has a part of an answer within max_length 3"):
        encode_rows(rows, tokenizer(), 3)


def test_a_text_that_the_template_leaves_out_is_said() -> None:
    rows = [row([("system", "steal"), *TURNS])]
    assert encode_rows(rows, tokenizer(), None).notes == {}
    notes = encode_rows(rows, tokenizer(WITHOUT_SYSTEM), None).notes
    assert notes == {"with a text of the role 'system' that the chat template changes": 1}


def test_the_trainer_takes_the_rows_as_they_are(tmp_path: Path) -> None:
    """Labels in the trainer's batch are those that were shown."""
    made = tokenizer()
    found = encode_rows([row(TURNS), row(TURNS[:2])], made, 9)
    args = SFTConfig(str(tmp_path), max_length=9, report_to="none", bf16=False)
    trainer = SFTTrainer(make_llama(), args, train_dataset=found.dataset(), processing_class=made)
    expected = [(one.ids[:9], one.labels[:9]) for one in found.rows]
    assert [(r["input_ids"], r["labels"]) for r in trainer.train_dataset] == expected


@pytest.mark.slow
def test_one_answer_is_as_in_trl(tmp_path: Path) -> None:
    """Rows with one answer: TRL's own tokenization of prompt and completion."""
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "how to bake", "response": "yes"}, {"prompt": "red", "response": ""}]
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    data, made = DataConfig(path=str(file)), tokenizer()
    args = SFTConfig(str(tmp_path), report_to="none", bf16=False, completion_only_loss=True)
    theirs = SFTTrainer(
        make_llama(), args, train_dataset=load_rows(data), processing_class=made
    ).train_dataset
    ours = encode_rows(read_rows(data)[0], made, 1024).rows
    assert [(r["input_ids"], r["labels"]) for r in theirs] == [(r.ids, r.labels) for r in ours]


def test_the_first_row_is_shown_with_its_mask() -> None:
    found = encode_rows([row(TURNS)], tokenizer(), 100)
    console = Console(width=200, record=True, file=io.StringIO())
    print_data("a.jsonl", ["1 row"], found.shown, console)
    text = console.export_text()
    assert "<user> how <end> <assistant>[[yes no <end>]]<user> what <end> <assistant>[[red" in text
    assert "what stands in [[ ]]" in text


def byte_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Every byte is a token, so that any template can be read back."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=letters[0])
    made.chat_template = template
    return made


def test_a_template_that_forgets_is_masked_by_that_of_trl() -> None:
    """Qwen3 drops earlier thoughts, so what ends with an answer is no beginning of the whole."""
    folder = Path(trl.__file__).parent / "chat_templates"
    made = byte_tokenizer((folder / "qwen3.jinja").read_text())
    thought = "<think>\nred\n</think>\n\n"
    turns = [("user", "how"), ("assistant", f"{thought}yes"), ("user", "what"), ("assistant", "no")]
    found = encode_rows([row(turns)], made, None)
    learned = [text.strip() for text, is_learned in found.shown if is_learned]
    assert [text.rpartition("\n")[2] for text in learned] == ["yes<|im_end|>", "no<|im_end|>"]
    assert not any("user" in text for text in learned)


def test_without_a_chat_template_it_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        Encoder(make_tokenizer(chat=False))


def test_a_token_that_the_model_does_not_have_is_refused() -> None:
    rows = [EncodedRow([1, 2, len(VOCABULARY)], [-100, 2, len(VOCABULARY)], False)]
    require_rows_of_tokens([EncodedRow([1, 2], [-100, 2], False)], make_llama())
    with pytest.raises(ConfigError, match=f"the token {len(VOCABULARY)}, .* has {len(VOCABULARY)}"):
        require_rows_of_tokens(rows, make_llama())
