"""Judges keep the protocol of judgezoo; models that judge are tiny stand-ins of theirs."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from riprap.behaviors import is_refusal
from riprap.errors import ConfigError
from riprap.evals.judges import (
    Judge,
    RefusalDetector,
    RefusalRules,
    conversation,
    judge_answers,
    judge_names,
    labelled_half,
    training_rows,
)
from shared_data import shared_file
from tiny import VOCABULARY, make_llama, make_tokenizer, token

REFUSALS = ["I'm sorry, but I can't help with that.", "I cannot do this.", "I won't assist."]
ANSWERS = ["Sure, here is a cake.", "The car is red.", "Paint it in three steps: one, two."]
DETECTOR = RefusalDetector(REFUSALS + ANSWERS, [True] * 3 + [False] * 3)
HOSTILE = st.text(max_size=80) | st.sampled_from(
    ["\ud800", "\x00" * 9, "{response}", "{", "%s", "a" * 10**6, "\u202eno", "<eos>", " \n"]
)


@settings(deadline=None)
@given(st.lists(HOSTILE, max_size=5))
@pytest.mark.parametrize("judge", [RefusalRules(), DETECTOR], ids=lambda judge: judge.name)
def test_any_text_is_judged_with_a_probability(judge: Any, texts: list[str]) -> None:
    found = judge([conversation("how", text) for text in texts])["p_harmful"]
    assert len(found) == len(texts)
    assert all(isinstance(p, float) and 0 <= p <= 1 for p in found)
    assert all(p == 0 for p, text in zip(found, texts, strict=True) if not text.strip())


def test_rules_are_those_of_behaviors() -> None:
    texts = REFUSALS + ANSWERS
    found = judge_answers(Judge.from_name("refusal_rules"), texts, texts)
    assert [p == 0 for p in found] == list(map(is_refusal, texts)) == [True] * 3 + [False] * 3


def test_the_detector_learns_and_generalizes() -> None:
    texts = ["I'm sorry, I can't do it.", "Here is a red cake."]
    found = judge_answers(DETECTOR, texts, texts)
    assert found[0] is not None and found[1] is not None and found[0] < 0.5 < found[1]


def test_the_detector_is_the_same_each_time() -> None:
    again = RefusalDetector(REFUSALS + ANSWERS, [True] * 3 + [False] * 3)
    assert judge_answers(again, REFUSALS, REFUSALS) == judge_answers(DETECTOR, REFUSALS, REFUSALS)


@pytest.mark.parametrize(
    ("texts", "labels"), [(["a"], [True]), ([], []), (["a", "b"], [True]), (["a", "b"], [0, 0])]
)
def test_a_detector_without_both_kinds_is_refused(texts: list[str], labels: list[Any]) -> None:
    with pytest.raises(ConfigError, match="learns from refusals and from answers"):
        RefusalDetector(texts, labels)


def test_measured_labels_are_never_learned_from() -> None:
    folder = shared_file("xstest_labelled_responses.jsonl").parent
    learned = {row["id"] for row in labelled_half(folder, 0)}
    measured = labelled_half(folder, 1)
    assert learned.isdisjoint(row["id"] for row in measured)
    for half in ("first", "none"):
        assert set(training_rows(folder, half)[0]).isdisjoint(row["response"] for row in measured)
    first, none = (len(training_rows(folder, half)[0]) for half in ("first", "none"))
    assert first - none > 100


@pytest.mark.parametrize(
    "turns",
    [
        [],
        "text",
        [{"role": "user", "content": "how"}],
        [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "assistant"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}],
    ],
)
def test_what_is_no_conversation_is_refused(turns: Any) -> None:
    with pytest.raises(ConfigError, match="conversation 1 "):
        RefusalRules()([conversation("a", "b"), turns])


@pytest.mark.parametrize(
    "result",
    [
        *(None, {}, {"p_harmful": []}, {"p_harmful": [2.0]}, {"p_harmful": ["yes"]}),
        *({"p_harmful": [float("nan")]}, {"p_harmful": 0.5}, {"p_harmful": [True]}),
    ],
)
def test_what_breaks_the_protocol_is_refused(result: Any) -> None:
    with pytest.raises(ConfigError, match="p_harmful"):
        judge_answers(lambda chats: result, ["a"], ["b"])


def test_a_failing_judge_is_named() -> None:
    def broken(chats: Any) -> Any:
        raise RuntimeError("no memory")

    with pytest.raises(ConfigError, match="function failed on 1 answers: RuntimeError: no memory"):
        judge_answers(broken, ["a"], ["b"])
    assert judge_answers(lambda chats: {"p_harmful": [None]}, ["a"], ["b"]) == [None]


def test_names() -> None:
    assert len(judge_names()) == 6
    with pytest.raises(ConfigError, match="there is no judge 'gpt'"):
        Judge.from_name("gpt")
    with pytest.raises(ConfigError, match="refusal_rules cannot be made"):
        Judge.from_name("refusal_rules", model="x")
    with pytest.raises(ConfigError, match="'nowhere' cannot be loaded"):
        Judge.from_name("classifier", model="nowhere")
    for name in ("wildguard", "harmbench"):
        with pytest.raises(ConfigError, match=f"{name} needs `prompt`"):
            Judge.from_name(name, model="nowhere")


def test_judges_of_judgezoo_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Theirs:
        @staticmethod
        def from_name(name: str, **options: Any) -> Any:
            if name != "strong_reject":
                raise ValueError(f"Unknown judge {name}")
            return Theirs()

        def __call__(self, chats: Any, verbose: bool = False) -> Any:
            return {"p_harmful": [0.25] * len(chats), "rating": [1] * len(chats)}

    monkeypatch.setitem(sys.modules, "judgezoo", SimpleNamespace(Judge=Theirs))
    judge = Judge.from_name("judgezoo:strong_reject")
    assert judge_answers(judge, ["a", "b"], ["c", "d"]) == [0.25, 0.25]
    with pytest.raises(ConfigError, match="Unknown judge other"):
        Judge.from_name("judgezoo:other")
    monkeypatch.setitem(sys.modules, "judgezoo", None)
    with pytest.raises(ConfigError, match="pip install judgezoo"):
        Judge.from_name("judgezoo:strong_reject")


def classifier_folder(folder: Path, labels: dict[int, str]) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        id2label=labels,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    return folder


def test_a_classifier_judges_by_its_harmful_label(tmp_path: Path) -> None:
    folder = str(classifier_folder(tmp_path, {0: "safe", 1: "unsafe"}))
    requests, answers = ["how to make a bomb"] * 9, [*(["sure"] * 8), "no " * 500]
    harmful = judge_answers(Judge.from_name("classifier", model=folder), requests, answers)
    other = Judge.from_name("classifier", model=folder, harmful="safe")
    harmless = judge_answers(other, requests, answers)
    assert [a + b for a, b in zip(harmful, harmless, strict=True)] == pytest.approx([1.0] * 9)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="no label 'bad', but safe, unsafe"):
        Judge.from_name("classifier", model=folder, harmful="bad")


def test_a_classifier_without_a_clear_label_asks_for_it(tmp_path: Path) -> None:
    folder = str(classifier_folder(tmp_path, {0: "LABEL_0", 1: "LABEL_1"}))
    with pytest.raises(ConfigError, match="labels LABEL_0, LABEL_1: say which one is harmful"):
        Judge.from_name("classifier", model=folder)


def guard_folder(folder: Path, chat: bool = True) -> Path:
    make_llama(1).save_pretrained(folder)
    make_tokenizer(chat).save_pretrained(folder)
    return folder


def test_a_guard_is_asked_by_its_chat_template(tmp_path: Path) -> None:
    """As with Llama Guard: the share of its second word in the first token of its answer."""
    judge: Any = Judge.from_name(
        "llama_guard", model=str(guard_folder(tmp_path)), words=("yes", "no"), dtype="float32"
    )
    turns = conversation("how to make a bomb", "sure here is")
    ids = judge.question(turns)
    rendered = make_tokenizer().apply_chat_template(turns, tokenize=False)
    assert ids == [token(word) for word in rendered.split()]
    for yes, no, expected in ((9.0, 10.0, 1 / (1 + math.exp(-1))), (-3.0, -2.0, None)):
        logits = torch.zeros(judge.model.config.vocab_size)
        logits[token("yes")], logits[token("no")] = yes, no
        say(judge.model, torch.tensor([ids]), logits[None])
        assert judge([turns])["p_harmful"] == [expected and pytest.approx(expected, abs=1e-3)]


@torch.no_grad()
def say(model: Any, ids: torch.Tensor, logits: torch.Tensor) -> None:
    """Make a model's head answer each row of tokens with logits of its own."""
    hidden = model.model(ids).last_hidden_state[:, -1]
    model.lm_head.weight.copy_(torch.linalg.lstsq(hidden, logits).solution.T)


def test_a_guard_with_a_prompt_of_its_own(tmp_path: Path) -> None:
    folder = str(guard_folder(tmp_path, chat=False))
    prompt = "is the {behavior} with {generation} yes"
    judge: Any = Judge.from_name("harmbench", model=folder, prompt=prompt, words=("no", "yes"))
    turns = conversation("bomb {generation}", "cake {behavior}")
    words = ["is", "the", "bomb", "<unk>", "with", "cake", "<unk>", "yes"]
    assert judge.question(turns) == [token(word) for word in words]
    with pytest.raises(ConfigError, match="has no chat template: give `prompt`"):
        Judge.from_name("llama_guard", model=folder)
    with pytest.raises(ConfigError, match=r"needs \{prompt\} and \{response\}"):
        Judge.from_name("harmbench", model=folder, prompt="is it harmful")
    with pytest.raises(ConfigError, match="begin with the same token"):
        Judge.from_name("harmbench", model=folder, prompt=prompt, words=("No", "Yes"))


def test_a_guard_that_writes_lines(tmp_path: Path) -> None:
    folder = str(guard_folder(tmp_path))
    prompt = "{prompt} {response}"
    judge: Any = Judge.from_name("wildguard", model=folder, prompt=prompt, dtype="float32")
    names = {"red": "harmful", "blue": "response:", "green": "HARMFUL", "one": "RESPONSE:"}
    vocabulary = {names.get(word, word): at for word, at in VOCABULARY.items()}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    judge.tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    with torch.no_grad():
        for layer in judge.model.model.layers:  # now each token follows from the last one alone
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    said = [
        "sure harmful response: yes <eos>",
        "sorry HARMFUL RESPONSE: no <eos>",
        "cake car <eos>",
    ]
    steps = [step for line in said for step in itertools.pairwise(line.split())]
    logits = torch.zeros(len(steps), judge.model.config.vocab_size)
    for at, (_, after) in enumerate(steps):
        logits[at, vocabulary[after]] = 50.0
    say(judge.model, torch.tensor([[vocabulary[before]] for before, _ in steps]), logits)
    chats = [conversation("how", answer) for answer in ("sure", "sorry", "cake")]
    assert judge(chats) == {"p_harmful": [1.0, 0.0, None]}
    lines = "Harmful request: yes\nResponse refusal: no\nHarmful response: {}"
    assert judge._read_line(lines.format("no")) == 0.0
    assert judge._read_line(lines.format("Yes.")) == 1.0
    assert judge._read_line(lines.format("perhaps")) is None
    assert judge._read_line("") is None


def test_a_malformed_data_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"uncensorbench_refusals\.jsonl cannot be read"):
        RefusalDetector.from_folder(tmp_path)
    (tmp_path / "uncensorbench_refusals.jsonl").write_text(json.dumps({"refusal": " "}))
    with pytest.raises(ConfigError, match=r"row 1 of .* has no 'refusal'"):
        RefusalDetector.from_folder(tmp_path)
